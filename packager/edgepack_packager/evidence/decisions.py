"""What a model's outputs mean: which one answers, and how answers of two models compare."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import onnx

from edgepack_contract.description import Kind, Task, TensorSpec
from edgepack_packager.data.rows import Array, Feeds
from edgepack_packager.errors import ConversionError
from edgepack_packager.graphs.clean import BATCH
from edgepack_packager.recipe import InputRule
from edgepack_packager.sources.model import as_labels
from edgepack_runtime.inference.session import Session, TensorInfo


@dataclass(frozen=True, slots=True)
class Decisions:
    """How to read a model's outputs.

    Attributes:
        task: What the model does.
        outputs: The outputs as the bundle describes them.
        answer: The name of the output whose values answer: labels, scores or values.
        scores: The name of the output with one score per class, if there is one.
        classes: The classes in the order of the scores, as the labels that :meth:`answers` gives.
        carried: Outputs that only feed a state, and answer nothing.
    """

    task: Task
    outputs: tuple[TensorSpec, ...]
    answer: str
    scores: str | None
    classes: Array | None
    carried: tuple[str, ...] = ()

    def answers(self, outputs: Mapping[str, Array]) -> Array:
        """Labels, shape (rows,); or values, shape (rows, columns), in 64-bit floats."""
        values = outputs[self.answer]
        if self.task != "classification":
            return values.reshape(len(values), -1).astype(np.float64)
        if self.answer != self.scores:
            return as_labels(values)
        top = values.reshape(len(values), -1).argmax(axis=1)
        return top if self.classes is None else np.asarray(self.classes[top])

    def margins(self, outputs: Mapping[str, Array]) -> Array | None:
        """By how much the best score leads the second, shape (rows,); None without scores."""
        if self.scores is None:
            return None
        scores = outputs[self.scores].reshape(len(outputs[self.scores]), -1)
        if scores.shape[1] < 2:
            return None
        best = np.sort(scores.astype(np.float64), axis=1)
        return np.asarray(best[:, -1] - best[:, -2])


def read_decisions(
    graph: onnx.GraphProto,
    session: Session,
    sample: Feeds,
    *,
    task: Task | None,
    classes: Sequence[str] | None,
    has_class_labels: bool,
    carried: Collection[str] = (),
) -> Decisions:
    """Work out what the outputs mean.

    Args:
        graph: The cleaned graph.
        session: The same, loaded.
        sample: The outputs of two or more rows, which show the sizes that the graph leaves open.
        task: What it is for, when that is known.
        classes: Names of the classes, when they are known.
        has_class_labels: Whether the truth that came with the data are whole numbers or texts.
        carried: Outputs that states are fed from.

    Raises:
        ConversionError: The outputs do not fit the task.
    """
    producers = {name: node.op_type for node in graph.node for name in node.output}
    telling = [info for info in session.outputs if info.name not in carried] or session.outputs
    label, scores = _label_output(telling), _score_output(telling, sample)
    normal = scores is not None and (
        _origin(graph, producers, scores) in {"Softmax", "TreeEnsemble"}
        or _is_share(scores, sample)
    )
    seen = {info.name: sample[info.name] for info in telling}
    wanted = task or _guess(
        label, scores, normal=normal or has_class_labels, classes=has_class_labels, sample=seen
    )
    if wanted == "classification":
        answer = label or scores
        if answer is None:
            raise ConversionError("no output is a label or a row of scores", code="no-decision")
        kinds = _class_kinds(label, scores, probabilities=normal)
    else:
        answer, scores, kinds = _value_output(telling), None, {}
    width = sample[scores].reshape(len(sample[scores]), -1).shape[1] if scores else None
    names = _class_names(classes, width)
    specs = tuple(
        _spec(info, sample[info.name], kinds.get(info.name, _other_kind(wanted)), names)
        if info in telling
        else _spec(info, sample[info.name], "data", None)
        for info in session.outputs
    )
    told = {info.name for info in telling}
    return Decisions(
        task=wanted,
        outputs=specs,
        answer=answer,
        scores=scores,
        classes=_class_values(names, label, sample),
        carried=tuple(info.name for info in session.outputs if info.name not in told),
    )


def input_specs(
    session: Session,
    sample: Feeds,
    features: Sequence[str] | None,
    rules: Mapping[str, InputRule],
) -> list[TensorSpec]:
    """The inputs as the bundle describes them.

    Args:
        session: The loaded graph.
        sample: Rows of every input.
        features: Names of the columns of the only input that is no state.
        rules: How inputs are fed, by name.
    """
    specs = [_spec(info, sample[info.name], "data", None) for info in session.inputs]
    return _ruled(specs, features, rules)


def open_inputs(
    session: Session, features: Sequence[str] | None, rules: Mapping[str, InputRule]
) -> list[TensorSpec]:
    """The inputs as far as the graph itself describes them, before any row is known.

    Raises:
        ConversionError: An input has no dimension for rows.
    """
    flat = [info.name for info in session.inputs if not info.shape]
    if flat:
        raise ConversionError(
            f"input {', '.join(flat)} has no dimension for rows; let --preprocess give it a "
            "constant, or export the model without it",
            code="unsupported-input",
        )
    specs = [
        TensorSpec(
            name=info.name,
            dtype=info.dtype,  # type: ignore[arg-type]  # Session gives names of this list only
            shape=[
                size or (f"{info.name}-{place}" if place else BATCH)
                for place, size in enumerate(info.shape)
            ],
        )
        for info in session.inputs
    ]
    return _ruled(specs, features, rules)


def _ruled(
    specs: Sequence[TensorSpec], features: Sequence[str] | None, rules: Mapping[str, InputRule]
) -> list[TensorSpec]:
    """The inputs with what the recipe and the source know of them: states, names of columns."""
    fed = [spec.name for spec in specs if spec.name not in rules or rules[spec.name].role == "data"]
    made = []
    for spec in specs:
        rule = rules.get(spec.name, InputRule())
        columns = rule.columns or (features if fed == [spec.name] else None)
        last = spec.shape[-1]
        fits = not isinstance(last, int) or last == len(columns or ())
        made.append(
            msgspec.structs.replace(
                spec,
                role=rule.role,
                source=rule.source,
                features=list(columns) if columns and fits else None,
            )
        )
    return made


def _label_output(outputs: Sequence[TensorInfo]) -> str | None:
    for info in outputs:
        narrow = len(info.shape) == 1 or (len(info.shape) == 2 and info.shape[1] == 1)
        if narrow and (info.dtype == "str" or "int" in info.dtype):
            return info.name
    return None


def _score_output(outputs: Sequence[TensorInfo], sample: Feeds) -> str | None:
    for info in outputs:
        values = sample[info.name]
        if info.dtype.startswith("float") and values.ndim == 2 and values.shape[1] > 1:
            return info.name
    return None


def _value_output(outputs: Sequence[TensorInfo]) -> str:
    for kind in ("float", "int", "uint", "bool"):
        for info in outputs:
            if info.dtype.startswith(kind):
                return info.name
    raise ConversionError("no output holds numbers", code="no-decision")


def _origin(graph: onnx.GraphProto, producers: Mapping[str, str], name: str) -> str:
    """What computes ``name``, looking through nodes that only pass values on."""
    nodes = {output: node for node in graph.node for output in node.output}
    for _ in range(len(graph.node)):
        kind = producers.get(name, "")
        if kind not in {"Identity", "Cast", "Reshape", "Squeeze"}:
            return "TreeEnsemble" if kind == "TreeEnsembleClassifier" else kind
        name = nodes[name].input[0]
    return ""


def _is_share(scores: str, sample: Feeds) -> bool:
    """Whether the scores of each sample row are shares of one."""
    values = sample[scores].astype(np.float64)
    return bool(np.all(values >= 0) and np.allclose(values.sum(axis=1), 1.0, atol=1e-3))


def _guess(
    label: str | None, scores: str | None, *, normal: bool, classes: bool, sample: Feeds
) -> Task:
    if (label and (scores or classes)) or (scores and normal):
        return "classification"
    floats = [values for values in sample.values() if values.dtype.kind == "f"]
    if label and not floats:
        return "classification"
    single = len(floats) == 1 and floats[0].reshape(len(floats[0]), -1).shape[1] == 1
    return "regression" if single else "other"


def _class_kinds(label: str | None, scores: str | None, *, probabilities: bool) -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    if label is not None:
        kinds[label] = "label"
    if scores is not None:
        kinds[scores] = "probabilities" if probabilities else "scores"
    return kinds


def _other_kind(task: Task) -> Kind:
    return "values" if task == "regression" else "data"


def _class_names(classes: Sequence[str] | None, width: int | None) -> list[str] | None:
    if classes is not None and width in {None, len(classes)}:
        return list(classes)
    return None if width is None else [str(place) for place in range(width)]


def _class_values(names: list[str] | None, label: str | None, sample: Feeds) -> Array | None:
    if names is None:
        return None
    textual = label is not None and sample[label].dtype.kind in "OU"
    whole = all(name.lstrip("-").isdecimal() for name in names)
    return np.array([int(name) for name in names] if whole and not textual else names)


def _spec(info: TensorInfo, values: Array, kind: Kind, names: list[str] | None) -> TensorSpec:
    sizes = info.shape or (None, *values.shape[1:])
    return TensorSpec(
        name=info.name,
        dtype=info.dtype,  # type: ignore[arg-type]  # Session gives names of this list only
        shape=[_size(place, size, values) for place, size in enumerate(sizes)],
        labels=names if kind in {"probabilities", "scores", "label"} else None,
        kind=kind,
    )


def _size(place: int, size: int | str | None, values: Array) -> int | str:
    if size is not None:
        return size
    # a nameless dimension is one that shape inference lost, and has the size that it is seen with
    return values.shape[place] if place else BATCH
