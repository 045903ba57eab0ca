"""Ranges of a recipe's settings that `tune` searches; they stand in the recipe's file, as ``SPACE``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass

from training.recipe import RecipeError


@dataclass(frozen=True)
class Between:
    """A number from ``low`` to ``high``, both included; ``log``: its logarithm is drawn evenly."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether only integers are drawn: both ends are written as integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class OneOf:
    """One of some values, as they are written after ``--set``."""

    values: tuple[str | int | float | bool, ...]


Space = Mapping[str, Between | OneOf]
"""By setting, ``section.field``."""


def space_of(recipe: str) -> Space:
    """The space of a recipe; raises `RecipeError` where its file has none."""
    space: Space | None = getattr(importlib.import_module(f"training.recipes.{recipe}"), "SPACE", None)
    if not space:
        raise RecipeError(
            f"recipe {recipe!r} has no space to search: write one as SPACE into training/recipes/{recipe}.py"
        )
    return space


def ends(space: Space) -> list[dict[str, str | int | float | bool]]:
    """Settings at which every range is at its low end, and at its high end; choices take their first and last."""
    return [
        {
            name: (range_.low, range_.high)[end] if isinstance(range_, Between) else range_.values[-end]
            for name, range_ in space.items()
        }
        for end in (0, 1)
    ]
