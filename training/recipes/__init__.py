"""The recipes: one file each, whose function ``recipe(backbone)`` returns one complete value. Files name them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence

from training.recipe import Recipe, RecipeError, refuse_repeats, with_settings

__all__ = ["Recipe", "RecipeError", "get_recipe", "recipe_names", "refuse_repeats", "with_settings"]


def recipe_names() -> list[str]:
    """Names of all recipes, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get_recipe(name: str, settings: Sequence[str] = (), *, backbone: str | None = None) -> Recipe:
    """The recipe called ``name`` for ``backbone`` (None: its usual one), with ``slot.field=value`` settings applied.

    Raises:
        RecipeError: no such recipe, slot or field, or a value that is not allowed.
    """
    known = recipe_names()
    if name not in known:
        raise RecipeError(f"recipe {name!r} not found; known recipes: {', '.join(known)}")
    make: Callable[..., Recipe] = importlib.import_module(f"training.recipes.{name}").recipe
    return with_settings(make() if backbone is None else make(backbone), settings)
