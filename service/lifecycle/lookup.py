"""Loaded artifacts by kind, and the choice of the one that answers a request: the one it names, or the default one."""

from __future__ import annotations

from typing import Literal

from service.errors import AnyoError, Conflict, UnknownName
from service.recommend.dense import DenseRecommender
from service.recommend.generative import GenerativeRecommender

AnyRecommender = DenseRecommender | GenerativeRecommender
Kind = Literal["dense", "generative"]


class ArtifactLookup:
    """The loaded artifacts by name, and the default one of each kind. All methods run on the event loop."""

    def __init__(self) -> None:
        self.recommenders: dict[str, AnyRecommender] = {}
        self.defaults: dict[Kind, str] = {}

    def get(self, name: str | None) -> AnyRecommender:
        """Return what answers for a loaded artifact (None: the default one, dense if there is one); raises UnknownName,
        or KeyError while nothing is loaded."""
        if name is None:
            return self.recommenders[self.defaults.get("dense") or self.defaults["generative"]]
        try:
            return self.recommenders[name]
        except KeyError:
            raise self.unknown(name, field="artifact") from None

    def dense(self, name: str | None) -> DenseRecommender:
        """Return the recommender of a dense artifact (None: the default one); raises UnknownName, Conflict."""
        found = self.get(name)
        if found.kind == "dense":
            return found
        if name is None:
            raise Conflict("no dense artifact is loaded; POST /recommend/generative is answered", code="wrong_kind")
        raise Conflict(
            f"artifact {name!r} (recipe {found.parts.recipe!r}) is generative, and this is for dense ones; "
            "POST /recommend/generative asks it",
            field="artifact",
            code="wrong_kind",
        )

    def generative(self, name: str | None, recipe: str | None, field: str = "artifact") -> GenerativeRecommender:
        """Return the recommender of a generative artifact: the one named, else the default one, else one of `recipe`.

        Raises UnknownName (none is loaded, or none of this name or recipe), Conflict (a dense one, or another recipe).
        """
        loaded = {key: each for key, each in self.recommenders.items() if each.kind == "generative"}
        if name is None and not loaded:
            raise UnknownName(
                "no generative artifact is loaded; train one with a generative recipe, and name it at the start or "
                "load it with POST /artifacts/{name}/load",
                code="no_generative_artifact",
            )
        if name is not None:
            found = self.get(name)
            if found.kind != "generative":
                raise Conflict(
                    f"artifact {name!r} (recipe {found.parts.recipe!r}) is dense; generative are "
                    f"{', '.join(loaded) or 'none of those loaded'}, and POST /recommend asks a dense one",
                    field=field,
                    code="wrong_kind",
                )
            if recipe is not None and found.parts.recipe != recipe:
                raise Conflict(
                    f"artifact {name!r} has recipe {found.parts.recipe!r}, recipe is {recipe[:80]!r}; leave one out",
                    field="recipe",
                )
            return found
        default = loaded[self.defaults["generative"]]
        for each in (default, *loaded.values()):
            if recipe in (None, each.parts.recipe):
                return each
        recipes = sorted({each.parts.recipe for each in loaded.values()})
        raise UnknownName(
            f"no artifact of recipe {str(recipe)[:80]!r} is loaded; generative recipes that are: {', '.join(recipes)}",
            field="recipe",
            code="unknown_recipe",
        )

    def ranker(self, name: str | None, recipe: str | None, within: str = "") -> AnyRecommender:
        """Return the recommender of an artifact that scores given candidates: the one named, or one of `recipe`, the
        default ones first. `within` is the field of the request in which both stand.

        Raises UnknownName (none of this name or recipe is loaded), Conflict (it does not score candidates, or has
        another recipe).
        """
        if name is not None:
            if name not in self.recommenders:
                raise self.unknown(name, field=within + "artifact")
            found = self.recommenders[name]
            if recipe is not None and found.parts.recipe != recipe:
                raise Conflict(
                    f"artifact {name!r} has recipe {found.parts.recipe!r}, recipe is {recipe[:80]!r}; leave one out",
                    field=within + "recipe",
                )
            if not found.ranks:
                raise Conflict(
                    f"artifact {name!r} (recipe {found.parts.recipe!r}) generates lists and does not score given "
                    f"candidates; those that do: {', '.join(self._rankers()) or 'none of those loaded'}",
                    field=within + "artifact",
                    code="wrong_kind",
                )
            return found
        defaults = [self.recommenders[each] for each in self.defaults.values()]
        for each in (*defaults, *self.recommenders.values()):
            if each.ranks and recipe in (None, each.parts.recipe):
                return each
        recipes = sorted({self.recommenders[each].parts.recipe for each in self._rankers()})
        raise UnknownName(
            f"no artifact of recipe {str(recipe)[:80]!r} that scores candidates is loaded; recipes of those that do: "
            f"{', '.join(recipes) or 'none'}",
            field=within + "recipe",
            code="unknown_recipe",
        )

    def speaker(self) -> GenerativeRecommender | None:
        """Return the recommender of an artifact with a language model that can write a sentence, the default generative
        one first; None where none is loaded."""
        default = self.recommenders.get(self.defaults.get("generative", ""))
        found = (each for each in (default, *self.recommenders.values()) if each is not None)
        return next((each for each in found if each.kind == "generative" and each.says), None)

    def _rankers(self) -> list[str]:
        return [name for name, each in self.recommenders.items() if each.ranks]

    def unknown(self, name: str, field: str | None = None) -> AnyoError:
        """Return the error about a name that is not loaded."""
        return UnknownName(
            f"artifact {name[:80]!r} is not loaded; loaded are {', '.join(self.recommenders)}",
            field=field,
            code="unknown_artifact",
        )
