"""What a recipe does to a model before anything else: states are given rows in front."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgepack_packager.data.rows import Feeds
from edgepack_packager.graphs.states import Turned, check_rules, rows_first, state_sources
from edgepack_packager.graphs.tensors import check_finite_weights
from edgepack_packager.recipe import Recipe
from edgepack_packager.sources import SourceModel
from edgepack_packager.sources.model import Answer


def prepare_source(source: SourceModel, recipe: Recipe) -> SourceModel:
    """The model as the recipe wants it packed; it answers as it did, by the new inputs.

    Raises:
        ConversionError: A weight is NaN or infinite.
        RecipeError: A rule names an input or output that the model has not, or does not fit it.
    """
    check_finite_weights(source.graph)
    check_rules(source.graph, recipe.inputs)
    graph, turned = rows_first(source.graph, state_sources(recipe.inputs))
    if not turned:
        return source
    return replace(
        source,
        graph=graph,
        answer=None if source.answer is None else _turned_answer(source.answer, turned),
        passes=(*source.passes, "rows-first"),
        warnings=(*source.warnings, _turned_words(turned)),
    )


def _turned_words(turned: tuple[Turned, ...]) -> str:
    names = ", ".join(state.name for state in turned)
    return f"state {names}: rows are the first dimension in the bundle, as of everything else"


def _turned_answer(answer: Answer, turned: tuple[Turned, ...]) -> Answer:
    def turn(feeds: Feeds) -> Feeds:
        inner = dict(feeds)
        for state in turned:
            inner[state.name] = np.moveaxis(feeds[state.name], 0, state.axis)
        outputs = dict(answer(inner))
        for source, axis in {state.source: state.axis for state in turned}.items():
            if source in outputs:
                outputs[source] = np.moveaxis(outputs[source], axis, 0)
        return outputs

    return turn
