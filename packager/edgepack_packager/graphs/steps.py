"""Run a model with a state over sequences, step by step, each step of all sequences at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgepack_packager.data.rows import Array, Feeds
from edgepack_packager.data.sequences import Indices, previous_rows, step_rows
from edgepack_packager.errors import ConversionError
from edgepack_packager.graphs.running import take_rows

Run = Callable[[Feeds], Feeds]
"""From rows of every input to one entry per row of every output."""


@dataclass(frozen=True, slots=True)
class Steps:
    """What is carried from row to row.

    Attributes:
        sources: The output that each state input is fed from.
        units: The number of the sequence of each row; rows of one stand in order.
    """

    sources: Mapping[str, str]
    units: Indices

    def first(self, rows: int) -> Steps:
        """The same for the first ``rows`` rows."""
        return replace(self, units=self.units[:rows])


def run_steps(run: Run, feeds: Feeds, steps: Steps | None) -> Feeds:
    """The outputs of all rows, each state starting at zero and then carried by ``run`` itself.

    Args:
        run: A model.
        feeds: One array per input. Of states, only shape and type count.
        steps: What is carried; None for a model without states.

    Raises:
        ConversionError: ``run`` gives no such output, or one of another shape than the state.
    """
    if steps is None:
        return run(feeds)
    plan = step_rows(steps.units)
    states = {
        name: np.zeros((len(plan[0]), *feeds[name].shape[1:]), feeds[name].dtype)
        for name in steps.sources
    }
    found: Feeds = {}
    for rows in plan:
        held = {name: state[: len(rows)] for name, state in states.items()}
        outputs = run({**take_rows(feeds, rows), **held})
        for name, values in outputs.items():
            if name not in found:
                found[name] = np.empty((len(steps.units), *values.shape[1:]), values.dtype)
            found[name][rows] = values
        states = {
            name: _carried(name, state, outputs, steps.sources[name])
            for name, state in held.items()
        }
    return found


def fill_states(feeds: Feeds, outputs: Feeds, steps: Steps | None) -> Feeds:
    """The rows with the states that a model was fed when it gave ``outputs``."""
    if steps is None:
        return feeds
    before = previous_rows(steps.units)
    later = before >= 0
    filled = dict(feeds)
    for name, source in steps.sources.items():
        state = np.zeros_like(feeds[name])
        state[later] = outputs[source][before[later]]
        filled[name] = state
    return filled


def _carried(name: str, state: Array, outputs: Feeds, source: str) -> Array:
    if source not in outputs:
        raise ConversionError(
            f"the source model gives no {source!r}, which the state {name!r} is carried from",
            code="no-output",
        )
    carried = outputs[source]
    if carried.shape != state.shape or carried.dtype != state.dtype:
        raise ConversionError(
            f"state {name!r} takes {list(state.shape[1:])} of {state.dtype} a row, its source "
            f"{source!r} gives {list(carried.shape[1:])} of {carried.dtype}",
            code="state-shape",
        )
    return carried
