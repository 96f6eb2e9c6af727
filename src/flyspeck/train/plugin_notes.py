"""Which plugins a recipe needs, as a run notes them."""

from __future__ import annotations

from flyspeck.data.readers import format_of
from flyspeck.models.names import plugins_of
from flyspeck.plugins import merged_notes, notes_of
from flyspeck.train.config import Recipe


def with_plugins(recipe: Recipe) -> Recipe:
    """The recipe with every plugin noted that it needs: for its model, its annotations, its transforms and its protocol."""
    data = recipe.data
    parts = [("reader", format_of(source, data.format)) for source in (data.train, data.val)]
    parts += [("transform", extra.name) for extra in recipe.augment.extra]
    parts += [("protocol", recipe.evaluate.protocol)]
    notes = merged_notes(recipe.plugins, [*plugins_of(recipe.model.name), *notes_of(parts)])
    return recipe.model_copy(update={"plugins": notes})
