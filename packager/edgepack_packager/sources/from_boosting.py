"""XGBoost's and LightGBM's own model files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgepack_contract.digest import sha256_digest
from edgepack_contract.limits import GIB
from edgepack_packager.errors import ConversionError, ModelSourceError
from edgepack_packager.sources.boosters import LightGBMClassifier, LightGBMRegressor, need
from edgepack_packager.sources.files import read_bounded
from edgepack_packager.sources.from_sklearn import convert_estimator
from edgepack_packager.sources.model import LoadContext, SourceModel
from edgepack_packager.sources.tree_files import check_lightgbm, check_nesting, check_xgboost

MAX_FILE_BYTES = 1 * GIB

_XGBOOST_LABELS = frozenset({"binary:logistic", "multi:softprob", "multi:softmax"})
_XGBOOST_VALUES = frozenset({
    "count:poisson", "reg:absoluteerror", "reg:gamma", "reg:linear", "reg:pseudohubererror",
    "reg:quantileerror", "reg:squarederror", "reg:squaredlogerror", "reg:tweedie",
})  # fmt: skip

_LIGHTGBM_LABELS = frozenset({"binary", "multiclass"})
_LIGHTGBM_VALUES = frozenset({
    "gamma", "huber", "poisson", "quantile", "regression", "regression_l1", "tweedie",
})  # fmt: skip


def load_xgboost(path: Path, context: LoadContext) -> SourceModel:
    """Load what ``Booster.save_model`` or ``XGBClassifier.save_model`` wrote, and convert it.

    Labels are 0 to n-1: these files keep no names of classes.

    Raises:
        ModelSourceError: Not such a file, or XGBoost is not installed.
        ConversionError: Its booster or objective has no ONNX form.
    """
    raw = read_bounded(path, MAX_FILE_BYTES)
    if raw.lstrip()[:1] != b"{" or b"learner" not in raw:
        raise ModelSourceError(
            f"{path.name} is not a model of XGBoost: write one with model.save_model(...)",
            code="model-type",
        )
    check_nesting(raw, path.name)
    xgboost = need("xgboost", f"reading {path.name}")
    try:
        booster = xgboost.Booster(model_file=bytearray(raw))
        learner = json.loads(booster.save_config())["learner"]
        estimator = _xgboost_estimator(xgboost, learner, str(learner["objective"]["name"]))
        check_xgboost(json.loads(booster.save_raw("json")), path.name)
        estimator.load_model(bytearray(raw))
    except (xgboost.core.XGBoostError, KeyError, TypeError, ValueError) as error:
        raise ModelSourceError(
            f"XGBoost cannot read {path.name}: {_first_line(error)}", code="unreadable-model"
        ) from error
    source = convert_estimator(
        estimator, context, digest=sha256_digest(raw), passes=("load-xgboost",)
    )
    return replace(source, warnings=(*source.warnings, *_stopped_early(booster)))


def load_lightgbm(path: Path, context: LoadContext) -> SourceModel:
    """Load what ``Booster.save_model`` wrote, and convert it; labels are 0 to n-1.

    Raises:
        ModelSourceError: Not such a file, or LightGBM is not installed.
        ConversionError: Its objective has no ONNX form.
    """
    raw = read_bounded(path, MAX_FILE_BYTES)
    if raw.splitlines()[:1] != [b"tree"] or b"\nend of trees" not in raw:
        raise ModelSourceError(
            f"{path.name} is not a model of LightGBM, or only a part of one: write it with "
            "booster.save_model('model.txt')",
            code="model-type",
        )
    check_lightgbm(raw, path.name)
    lightgbm = need("lightgbm", f"reading {path.name}")
    try:
        booster = lightgbm.Booster(model_str=raw.decode())
        told = booster.dump_model(num_iteration=1)
    except (lightgbm.basic.LightGBMError, UnicodeDecodeError, ValueError) as error:
        raise ModelSourceError(
            f"LightGBM cannot read {path.name}: {_first_line(error)}", code="unreadable-model"
        ) from error
    estimator = _lightgbm_estimator(booster, told, _names(booster.feature_name(), context))
    return convert_estimator(
        estimator, context, digest=sha256_digest(raw), passes=("load-lightgbm",)
    )


def _xgboost_estimator(xgboost: Any, learner: dict[str, Any], objective: str) -> Any:
    booster = learner["gradient_booster"]["name"]
    if booster != "gbtree":
        raise ConversionError(
            f"this model of XGBoost has the booster {booster}, which has no ONNX form; train it "
            "with gbtree",
            code="unsupported-model",
        )
    if objective in _XGBOOST_LABELS:
        return xgboost.XGBClassifier()
    if objective in _XGBOOST_VALUES:
        return xgboost.XGBRegressor()
    raise _unsupported("XGBoost", objective, _XGBOOST_LABELS | _XGBOOST_VALUES)


def _names(written: list[str], context: LoadContext) -> list[str]:
    """The names of columns as the data have them: LightGBM's files write spaces as underscores."""
    spelled = {re.sub(r"\s", "_", name): name for name in context.columns}
    return [spelled.get(name, name) for name in written]


def _lightgbm_estimator(booster: Any, told: dict[str, Any], names: list[str]) -> Any:
    objective = str(told.get("objective", "")).split(" ")[0]
    if objective in _LIGHTGBM_LABELS:
        return LightGBMClassifier(booster, names, max(2, int(told["num_class"])))
    if objective in _LIGHTGBM_VALUES:
        return LightGBMRegressor(booster, names)
    raise _unsupported("LightGBM", objective, _LIGHTGBM_LABELS | _LIGHTGBM_VALUES)


def _unsupported(library: str, objective: str, known: frozenset[str]) -> ConversionError:
    return ConversionError(
        f"this model of {library} has the objective {objective or 'of its own'}; these can be "
        f"packed: {', '.join(sorted(known))}",
        code="unsupported-model",
    )


def _stopped_early(booster: Any) -> tuple[str, ...]:
    best, rounds = booster.attr("best_iteration"), booster.num_boosted_rounds()
    if best is None or int(best) + 1 >= rounds:
        return ()
    words = f"training was stopped early: {int(best) + 1} of {rounds} rounds are packed"
    return (f"{words}, as XGBClassifier and XGBRegressor predict",)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
