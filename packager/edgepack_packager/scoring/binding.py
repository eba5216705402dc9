"""Which columns of a table feed which input of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgepack_contract.description import Description, TensorSpec
from edgepack_packager.errors import DataError

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Binding:
    """The columns of one input, in the order of its last dimension.

    ``whole`` says that the only column has the input's own name and may hold lists.
    """

    spec: TensorSpec
    columns: tuple[str, ...]
    whole: bool = False


def bind_columns(
    description: Description, names: Sequence[str], *, kept: Sequence[str] = ()
) -> list[Binding]:
    """Find the columns of every input: by the input's name, by its features, else all there are.

    Args:
        description: The variant that will answer.
        names: The columns of the table.
        kept: Columns that are carried through; where a model does not name its features, these are
            none.

    Raises:
        DataError: The model has states; a column is missing or twice; or the number of columns is
            not what a model that names none takes.
    """
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise DataError(f"the column {', '.join(twice)} is there twice", code="ragged-data")
    states = [spec.name for spec in description.inputs if spec.role == "state"]
    if states:
        raise DataError(
            f"the input {', '.join(states)} is a state, which is carried from row to row; rows of "
            "a table are scored each by itself, so this model cannot be used here",
            code="state-model",
        )
    return [_bind(spec, names, kept, alone=len(description.inputs) == 1)
            for spec in description.inputs]  # fmt: skip


def _bind(spec: TensorSpec, names: Sequence[str], kept: Sequence[str], *, alone: bool) -> Binding:
    if spec.name in names:
        return Binding(spec, (spec.name,), whole=True)
    if spec.features is not None:
        missing = [name for name in spec.features if name not in names]
        if missing:
            raise DataError(
                f"the data have no column {_listed(missing)}, which the input {spec.name!r} takes; "
                f"they have {_listed(names)}",
                code="missing-input",
            )
        return Binding(spec, tuple(spec.features))
    if not alone:
        raise DataError(
            f"the data have no column {spec.name!r}, which the model takes as one of several "
            f"inputs; they have {_listed(names)}",
            code="missing-input",
        )
    columns = tuple(name for name in names if name not in kept)
    wanted = spec.shape[1:]
    width = math.prod(size for size in wanted if isinstance(size, int))
    if all(isinstance(size, int) for size in wanted) and width != len(columns):
        raise DataError(
            f"the input {spec.name!r} takes {width} columns and names none of them, the data have "
            f"{len(columns)}: {_listed(columns)}; carry what is no feature through with --keep, or "
            "leave it out",
            code="bad-shape",
        )
    return Binding(spec, columns)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
