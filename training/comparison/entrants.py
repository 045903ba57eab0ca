"""Entrants of a comparison: existing artifacts, and recipes that are trained first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from modeling.artifact.manifest import MANIFEST, ArtifactError, read_manifest
from modeling.backbone.sources import neutral_recipe
from training.data.dataset import Dataset
from training.data.report import DataError
from training.recipe import Recipe, RecipeError
from training.recipes import get_recipe, recipe_names
from training.run import RunOptions, run
from training.updating.parent import ancestors_of

PROTOCOLS = ("leave-one-out", "global-time")
ARTIFACTS = "artifacts"


@dataclass(frozen=True)
class Entrant:
    """One run of a comparison.

    Attributes:
        name: in the report.
        folder: of its artifact; it may not be there yet where ``recipe`` is given.
        recipe: to train it with; None: the artifact was given.
        protocol: split it is trained on, where it is trained here.
    """

    name: str
    folder: Path
    recipe: Recipe | None = None
    protocol: str = PROTOCOLS[0]


@dataclass(frozen=True)
class Asked:
    """Entrants as the command line names them.

    Attributes:
        words: artifact folders, recipes, or ``NAME=RECIPE``.
        settings: ``NAME:section.field=value``.
        backbones: ``NAME:BACKBONE``.
        protocols: splits that recipes are trained on.
    """

    words: Sequence[str]
    settings: Sequence[str] = ()
    backbones: Sequence[str] = ()
    protocols: Sequence[str] = field(default=PROTOCOLS[:1])


def entrants_of(asked: Asked, out: Path | None) -> list[Entrant]:
    """The entrants in the order they were given; a recipe once a protocol.

    Raises:
        RecipeError: neither a recipe nor a folder, a name twice, a setting of no entrant, or a recipe without ``out``.
    """
    settings, backbones = _by_name("--set", asked.settings), _by_name("--backbone", asked.backbones)
    if unknown := [name for name in asked.protocols if name not in PROTOCOLS]:
        raise RecipeError(f"--protocol {unknown[0]!r} is not allowed; allowed are {', '.join(PROTOCOLS)}")
    found: list[Entrant] = []
    trained: set[str] = set()
    for word in asked.words:
        name, sign, recipe_name = word.rpartition("=")
        recipe_name, name = (recipe_name, name) if sign else (word, word)
        if recipe_name not in recipe_names():
            if not (Path(word) / MANIFEST).is_file():
                raise RecipeError(
                    f"{word!r} is neither an artifact's folder nor a recipe; recipes: {', '.join(recipe_names())}"
                )
            found.append(Entrant(Path(word).resolve().name, Path(word)))
            continue
        if out is None:
            raise RecipeError(
                f"recipe {word!r} has to be trained: name a folder for artifacts and report with "
                f"--out (or write ./{word} for an artifact's folder)"
            )
        if not name or not name.isprintable() or "/" in name or name.startswith("."):
            raise RecipeError(f"{name!r} cannot be the name of an artifact")
        trained.add(name)
        backbone = backbones.get(name, [None])[-1]
        recipe = get_recipe(recipe_name, settings.get(name, []), backbone=backbone)
        for protocol in dict.fromkeys(asked.protocols):
            label = name if protocol == PROTOCOLS[0] else f"{name}.{protocol}"
            found.append(Entrant(label, out / ARTIFACTS / label, recipe, protocol))
    for option, given in (("--set", settings), ("--backbone", backbones)):
        if strange := sorted(set(given) - trained):
            raise RecipeError(f"{option} {strange[0]}:… belongs to no recipe that is trained here")
    names = [entrant.name for entrant in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RecipeError(f"{twice!r} takes part twice; tell recipes apart with NAME=RECIPE, and rename folders")
    return found


def _by_name(option: str, given: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in given:
        name, sign, value = text.partition(":")
        if not (name and sign and value):
            raise RecipeError(f"{option} {text!r} is not of the form NAME:VALUE, e.g. sasrec:optimizer.epochs=20")
        found.setdefault(name, []).append(value)
    return found


def train_missing(
    entrants: Sequence[Entrant],
    dataset: Dataset,
    *,
    seed: int,
    budget: float | None,
    precision: str,
    console: Console,
) -> None:
    """Train every entrant whose artifact is not there; one that was cut off goes on from its last checkpoint.

    A recipe that builds on another one takes the entrant of that recipe and protocol, which is trained before it.

    Args:
        entrants: of the comparison.
        dataset: what is trained on.
        seed: of every training.
        budget: minutes for each training; None: until it ends by itself.
        precision: ``fp32``, ``bf16`` or ``auto``.
        console: progress and the time left.

    Raises:
        RecipeError: what a recipe builds on does not take part, or it learns from a teacher's lists.
        ArtifactError: at an entrant's place lies an artifact of another recipe, data set, split or seed.
    """
    _check_buildable(entrants)
    waiting = [entrant for entrant in entrants if entrant.recipe is not None]
    missing = [each for each in waiting if not _there(each, dataset, seed)]
    missing.sort(key=lambda each: each.recipe is not None and each.recipe.requires is not None)
    spent: list[float] = []
    for number, each in enumerate(missing, 1):
        left = _left(spent, len(missing) - number + 1, budget)
        console.print(f"training {number} of {len(missing)}: {each.name}{left}", markup=False, highlight=False)
        started = time.monotonic()
        assert each.recipe is not None
        base = _base(each, entrants)
        options = RunOptions(
            out=each.folder, seed=seed, time_budget=budget, split=each.protocol, precision=precision,  # type: ignore[arg-type]
            id_model=base.folder if base else None,
        )  # fmt: skip
        run(each.recipe, dataset, options, console)
        spent.append((time.monotonic() - started) / 60)


def _left(spent: Sequence[float], runs: int, budget: float | None) -> str:
    """The time left for ``runs`` trainings, from those that are over; at most their budgets."""
    if not spent and budget is None:
        return ""
    each = sum(spent) / len(spent) if spent else float(budget or 0)
    return f"; {'about' if spent else 'at most'} {runs * each:.1f} min left for training"


def _check_buildable(entrants: Sequence[Entrant]) -> None:
    for each in entrants:
        if each.recipe is None:
            continue
        if each.recipe.method.needs_teacher:
            raise RecipeError(
                f"{each.name} learns from a teacher's lists: train it with `python -m training train`, and give its "
                "folder"
            )
        _base(each, entrants)


def _base(entrant: Entrant, entrants: Sequence[Entrant]) -> Entrant | None:
    """The entrant that another one builds on; None where it builds on none."""
    assert entrant.recipe is not None
    needed = entrant.recipe.requires
    if needed is None:
        return None
    for other in entrants:
        if other.recipe is not None:
            if other.recipe.name == needed and other.protocol == entrant.protocol:
                return other
            continue
        manifest = read_manifest(other.folder)
        if manifest.recipe == needed and manifest.split.partition(" ")[0] == entrant.protocol:
            return other
    raise RecipeError(
        f"{entrant.name} builds on a model of recipe {needed!r} by {entrant.protocol}: let one take part too"
    )


def _there(entrant: Entrant, dataset: Dataset, seed: int) -> bool:
    """Whether the artifact is there; raises ArtifactError where it is another one."""
    if not (entrant.folder / MANIFEST).exists():
        return False
    assert entrant.recipe is not None
    manifest = read_manifest(entrant.folder)
    wanted = {
        "recipe": (neutral_recipe(entrant.recipe.model_dump(mode="json")), manifest.recipe_data),
        "data": (dataset.sha256, manifest.data_sha256),
        "split": (entrant.protocol, manifest.split.partition(" ")[0]),
        "seed": (seed, manifest.training.get("seed")),
        "order of ties": (dataset.ties, manifest.training.get("ties")),
    }
    for what, (asked, found) in wanted.items():
        if asked != found:
            raise ArtifactError(
                f"{entrant.folder} holds an artifact of another {what} than is asked for now; name another --out, or "
                "take it away to have it trained anew"
            )
    return True


def require_same_dataset(entrants: Sequence[Entrant], dataset: Dataset) -> frozenset[str]:
    """Refuse artifacts that were trained on other data, before anything is trained.

    Returns:
        Versions of what artifacts that take part were updated from: these may be of earlier data.

    Raises:
        DataError: an artifact is of other data.
    """
    given = {each.folder: read_manifest(each.folder) for each in entrants if each.recipe is None}
    ancestors = ancestors_of(list(given.values()), dataset.sha256)
    for folder, manifest in given.items():
        if manifest.data_sha256 != dataset.sha256 and manifest.version not in ancestors:
            raise DataError(f"artifact {folder} was trained on other data than {dataset.name!r}")
    return ancestors
