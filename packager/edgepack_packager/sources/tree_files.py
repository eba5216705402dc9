"""Trees in files of others: held against their own sizes before a library walks them.

LightGBM and XGBoost follow the numbers of children without looking: a truncated file ends the
process, a crooked one reads elsewhere or never ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edgepack_packager.errors import ModelSourceError
from edgepack_packager.sources.ubjson import deepest

_FIELD = re.compile(rb"^([a-z_]+)=(.*)$", re.MULTILINE)

_OPEN = np.frombuffer(b"[{", np.uint8)
_CLOSE = np.frombuffer(b"]}", np.uint8)

MAX_NESTING = 64
"""Far deeper than any model; XGBoost's reader calls itself for every bracket."""


def check_lightgbm(raw: bytes, name: str) -> None:
    """Check that the text of a LightGBM model is whole, and that its trees are trees.

    Raises:
        ModelSourceError: It is damaged.
    """
    head, _, rest = raw.replace(b"\r\n", b"\n").partition(b"\n\n")
    fields = dict(_FIELD.findall(head))
    try:
        sizes = [int(size) for size in fields[b"tree_sizes"].split()]
        width = int(fields[b"max_feature_idx"]) + 1
        for place, tree in enumerate(_split(rest, sizes)):
            _check_text(tree, place, width)
    except (KeyError, ValueError, IndexError) as error:
        raise ModelSourceError(
            f"{name} is damaged: {error}; write it again with booster.save_model('model.txt')",
            code="unreadable-model",
        ) from error


def check_xgboost(model: Any, name: str) -> None:
    """Check that the trees of an XGBoost model, as its own JSON has them, are trees.

    Raises:
        ModelSourceError: They are not.
    """
    learner = model["learner"]
    width = int(learner["learner_model_param"]["num_feature"])
    for place, tree in enumerate(learner["gradient_booster"]["model"]["trees"]):
        left, right = (np.asarray(tree[f"{side}_children"], int) for side in ("left", "right"))
        inner = left >= 0
        problem = _problem(left[inner], right[inner], len(left)) or (
            "it looks at a column that is not there"
            if np.any(np.asarray(tree["split_indices"])[inner] >= width)
            else ""
        )
        if problem:
            raise ModelSourceError(f"{name}, tree {place}: {problem}", code="unreadable-model")


def check_nesting(raw: bytes, name: str) -> None:
    """Check that an XGBoost file nests no deeper than a model does.

    Raises:
        ModelSourceError: It nests too deeply, or is neither JSON nor UBJSON.
    """
    try:
        depth = _json_depth(raw) if _is_json(raw) else deepest(raw, MAX_NESTING)
    except ValueError as error:
        raise ModelSourceError(f"{name} is damaged: {error}", code="unreadable-model") from error
    if depth >= MAX_NESTING:
        raise ModelSourceError(
            f"{name} is nested {MAX_NESTING} levels deep, which no model is",
            code="unreadable-model",
        )


def _is_json(raw: bytes) -> bool:
    """XGBoost looks at the byte behind the first bracket, as here."""
    return raw[1:2] in {b'"', b" ", b"\n", b"\r", b"\t", b"}"}


def _json_depth(raw: bytes) -> int:
    """Brackets open at once; those in texts count too, which is at most too many."""
    kinds = np.frombuffer(raw, dtype=np.uint8)
    steps = np.isin(kinds, _OPEN).astype(np.int8) - np.isin(kinds, _CLOSE).astype(np.int8)
    return int(np.cumsum(steps, dtype=np.int64).max(initial=0))


def _split(rest: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    rest = rest.lstrip(b"\n")
    start = 0
    for place, size in enumerate(sizes):
        tree = rest[start : start + size]
        if not tree.startswith(b"Tree=%d\n" % place) or len(tree) != size:
            raise ValueError(f"tree {place} of {len(sizes)} is not where it should be")
        yield tree
        start += size
    if not rest[start:].lstrip().startswith(b"end of trees"):
        raise ValueError("the trees do not end where they should")


def _check_text(tree: bytes, place: int, width: int) -> None:
    fields = dict(_FIELD.findall(tree))
    leaves = int(fields[b"num_leaves"])
    if leaves == 1:
        return
    inner = leaves - 1
    left, right, columns = (
        np.array(fields[key].split(), dtype=np.int64)
        for key in (b"left_child", b"right_child", b"split_feature")
    )
    for key, wanted in (
        (b"left_child", inner), (b"right_child", inner), (b"split_feature", inner),
        (b"threshold", inner), (b"decision_type", inner), (b"leaf_value", leaves),
    ):  # fmt: skip
        if len(fields[key].split()) != wanted:
            raise ValueError(f"tree {place} has not {wanted} entries in {key.decode()}")
    if columns.min() < 0 or columns.max() >= width:
        raise ValueError(f"tree {place} looks at a column that is not there")
    # leaves count down from -1: as nodes behind the inner ones, all are numbered alike
    left, right = (np.where(side < 0, inner - 1 - side, side) for side in (left, right))
    problem = _problem(left, right, inner + leaves)
    if problem:
        raise ValueError(f"tree {place}: {problem}")


def _problem(left: Any, right: Any, nodes: int) -> str:
    """Why children do not make a tree: every node but the first has one parent at most."""
    children = np.concatenate([left, right])
    if np.any(children < 1) or np.any(children >= nodes):
        return "a child is not there"
    if len(np.unique(children)) != len(children):
        return "a node has two parents"
    return ""
