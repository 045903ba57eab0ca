"""Every setting of every recipe is read in a run of it, or refused; none is accepted and ignored."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from rich.console import Console

from index.base import IndexSpec
from modeling.spec import Section
from testing.datasets import ring_dataset, trained_sasrec
from testing.models import backbone_folder, writer_folder
from training.compare import export_teacher
from training.data.dataset import Dataset
from training.effects import EFFECTS
from training.recipe import MethodSettings, effect_of, method_names, training_method
from training.recipes import Recipe, RecipeError, get_recipe, recipe_names
from training.run import RunOptions, run

__all__ = ["backbone_folder", "writer_folder"]  # fixtures

QUIET = Console(quiet=True)
SHORT = ["optimizer.epochs=1", "optimizer.positions=60"]
TITLES = [*SHORT, "history.title_tokens=4", "history.limit=5", "method.validation_users=8"]
DENSE = [*SHORT, "items.dim=16"]
OWN = [*DENSE, "backbone.width=16", "backbone.dropout=0.1"]
CODES = [
    *SHORT, "method.validation_users=8", "backbone.width=32", "backbone.depth=1", "method.beams=4",
    "method.codes.size=4", "items.text_source=FOLDER",
]  # fmt: skip
RUNS: dict[str, tuple[str, bool, list[str]]] = {
    "sasrec": ("sasrec", False, OWN),
    "sasrec, sampled": ("sasrec", False, [*OWN, "method.objective.kind=sampled"]),
    "sasrec, gated, gbce": ("sasrec", False, [*OWN, "backbone.block=ligr", "method.objective.kind=gbce"]),
    "dllm2rec": ("dllm2rec", False, OWN),
    "sracl": ("sracl", False, [*OWN, "method.semantic.source=FOLDER"]),
    "cllmrec": (
        "cllmrec", False, [*OWN, "method.views.writer=WRITER", "method.views.source=FOLDER", "method.views.tokens=4",
         "method.views.prompt=chosen {titles}"],
    ),
    "sasrec, last items": ("sasrec", False, [*OWN, "projector.residual=true", "projector.recent=3"]),
    "sasrec, no network": (
        "sasrec", False, [*DENSE, "projector.kind=none", "projector.residual=true", "projector.recent=3",
         "history.form=compressed", "items.tower=both", "items.text_source=FOLDER"],
    ),
    "sasrec, seen left out": ("sasrec", False, [*OWN, "method.objective.mask_seen=true"]),
    "sasrec, in both directions": (
        "sasrec", False, [*OWN, "backbone.attention=bidirectional", "pooling.kind=last_n", "optimizer.user_windows=4"],
    ),
    "sasrec, pulled": ("sasrec", False, [*OWN, "requires=sasrec", "method.objective.pull=0.1"]),
    "anyo": ("anyo", True, DENSE),
    "anyo, titles": ("anyo", True, [*DENSE, "history.form=titles", "history.title_tokens=4", "history.limit=5"]),
    "anyo, frozen": ("anyo", True, [*DENSE, "adapter.kind=none"]),
    "anyo, both sides mapped": ("anyo", True, [*DENSE, "projector.side=both"]),
    "anyo, texts alone": ("anyo", True, [*DENSE, "history.ids=false", "items.tower=text", "projector.side=items"]),
    "popularity": ("popularity", False, []),
    "markov": ("markov", False, []),
    "item_knn": ("item_knn", False, ["method.neighbours=5"]),
    "hybrid_knn": ("hybrid_knn", False, []),
    "item_softmax": ("item_softmax", True, DENSE),
    "e4srec": ("e4srec", True, DENSE),
    "e4srec, tied": ("e4srec", True, [*DENSE, "items.untied=false", "projector.kind=linear"]),
    "e4srec, titles": (
        "e4srec", True,
        [*SHORT, "history.form=text", "requires=", "items.frozen=false", "history.title_tokens=4", "history.limit=5"],
    ),
    "e4srec, words": (
        "e4srec", True, [*SHORT, "items.words=true", "items.untied=false", "items.frozen=false", "requires="],
    ),
    "contriever": ("contriever", True, [*DENSE, "history.title_tokens=4", "history.limit=5"]),
    "contriever, queue": (
        "contriever", True, [*DENSE, "history.title_tokens=4", "history.limit=5", "method.objective.queue=8"],
    ),
    "ilora": (
        "ilora", True, [*DENSE, "history.title_tokens=4", "history.limit=5", "optimizer.user_windows=2"],
    ),
    "llm2vec": (
        "llm2vec", True, [*DENSE, "history.title_tokens=4", "history.limit=5", "optimizer.user_windows=2",
         "method.adaptation.masked_steps=1", "method.adaptation.simcse_steps=1"],
    ),
    "llara_dense": (
        "llara_dense", True, [*DENSE, "history.title_tokens=4", "history.limit=5", "optimizer.user_windows=2",
         "method.adaptation.passage_steps=1"],
    ),
    "genre": ("genre", True, TITLES),
    "bigrec": ("bigrec", True, TITLES),
    "llara": ("llara", True, [*TITLES, "method.candidates=4"]),
    "tallrec": (
        "tallrec", True, [*TITLES, 'method.labels=["red","blue"]', "method.answers=choices", "method.candidates=4"],
    ),
    "llamarec": (
        "llamarec", True, [*TITLES, 'method.labels=["red","blue","old"]', "method.window=3", "method.candidates=4"],
    ),
    "tiger": ("tiger", False, [*CODES, "method.codes.epochs=2"]),
    "tiger, encoder": (
        "tiger", False, [*CODES, "method.codes.kind=residual-kmeans", "backbone.kind=encoder-decoder",
         "history.user_buckets=4"],
    ),
    "p5": ("p5", False, [*CODES[:-1], "method.codes.clusters=3", 'method.tasks.families=["sequential","direct"]']),
}  # fmt: skip
"""Runs by name: recipe, whether it has a language model as backbone, settings."""


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Paths of the sections that ``--set`` reaches into, and their types."""
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if (
                isinstance(kind, type)
                and issubclass(kind, BaseModel)
                and not issubclass(kind, (IndexSpec, MethodSettings))
            ):
                yield prefix + name, kind
                yield from sections(kind, f"{prefix}{name}.")


SHARED = dict(sections(Recipe))


def sections_of(recipe: Recipe) -> dict[str, type[BaseModel]]:
    """Those of one recipe, its method's among them."""
    kind = type(recipe.method)
    return {**SHARED, "method": kind, **dict(sections(kind, "method."))}


def paths_of(recipe: Recipe) -> set[str]:
    """All settings that ``--set`` takes."""
    found = {f"{section}.{name}" for section, kind in sections_of(recipe).items() for name in kind.model_fields}
    return (found | {"requires"}) - {"method.kind"} - set(sections_of(recipe))


def test_the_table_has_every_setting_of_the_shared_slots_and_no_other() -> None:
    fields = {f"{slot}.{name}" for slot, kind in SHARED.items() for name in kind.model_fields}
    assert set(EFFECTS) == fields | {"requires", "index"}
    assert {name for name, _, _ in RUNS.values()} == set(recipe_names())


@pytest.mark.parametrize("kind", method_names())
def test_conditions_in_a_method_are_about_its_own_settings(kind: str) -> None:
    settings = training_method(kind).Settings
    own = {f"{path}.{name}" for path, section in sections(settings) for name in section.model_fields}
    assert set(settings.effects()) <= own | set(settings.model_fields)


def others(path: str, recipe: Recipe) -> list[str]:
    """Values of a setting that are allowed as far as its type says, and are not the one it has."""
    slot, _, name = path.rpartition(".")
    if path == "requires":
        return ["sasrec" if recipe.requires is None else ""]
    kind = sections_of(recipe)[slot].model_fields[name].annotation
    found: list[Any] = []
    for option in (kind, *get_args(kind)):
        if get_origin(option) is Literal:
            found += get_args(option)
        elif option in (bool, int, float, str):
            found += {bool: [True, False], int: [1, 2, 8, 400], float: [0.25], str: ["minilm", "x"]}[option]
    given = attrgetter(path)(recipe)
    found = [value for value in found if value != given] or [["sequential"]]
    return [value if isinstance(value, str) else json.dumps(value) for value in found]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"), users=24, items=20)


@pytest.fixture(scope="module")
def sasrec(ring: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_sasrec(ring, tmp_path_factory.mktemp("artifacts"), OWN)


def reads_of(patch: pytest.MonkeyPatch, recipe: Recipe) -> set[str]:
    """Settings that are read from now on, apart from the checks of a description."""
    found: set[str] = set()
    names = {kind: f"{slot}." for slot, kind in sections_of(recipe).items()} | {Recipe: ""}

    def checks() -> bool:
        frame = sys._getframe(2)
        for _ in range(4):
            if frame.f_code.co_name.startswith("_") and frame.f_code.co_filename.endswith(("spec.py", "recipe.py")):
                return True
            if frame.f_back is None:
                return False
            frame = frame.f_back
        return False

    def read(self: Section, name: str) -> Any:
        prefix = names.get(type(self))
        if prefix is not None and name in type(self).model_fields and not checks():
            found.add(prefix + name)
        return object.__getattribute__(self, name)

    patch.setattr(Section, "__getattribute__", read)
    return found


@pytest.mark.parametrize("case", RUNS)
def test_a_setting_is_read_or_refused(
    case: str,
    ring: Dataset,
    sasrec: Path,
    backbone_folder: Callable[[str], Path],
    writer_folder: Path,
    tmp_path: Path,
) -> None:
    name, language_model, settings = RUNS[case]
    folder = str(backbone_folder("qwen3"))
    settings = [setting.replace("FOLDER", folder).replace("WRITER", str(writer_folder)) for setting in settings]
    backbone = folder if language_model else None
    recipe = get_recipe(name, settings, backbone=backbone)
    id_model = sasrec if recipe.requires else None
    teacher = None
    if recipe.method.needs_teacher:
        teacher = tmp_path / "teacher"
        export_teacher(sasrec, ring, teacher, top=10, newest=None, console=QUIET)
    with pytest.MonkeyPatch.context() as patch:
        found = reads_of(patch, recipe)
        run(recipe, ring, RunOptions(out=tmp_path / "out", id_model=id_model, teacher=teacher), QUIET)
    accepted, refused = set(), set()
    for path in paths_of(recipe):  # of an index, its own class refuses what its kind does not read
        for value in others(path, recipe):
            try:
                get_recipe(name, [*settings, f"{path}={value}"], backbone=backbone)
            except RecipeError as error:
                if f"{path} has no effect" in str(error):
                    refused.add(path)
            else:
                accepted.add(path)
    ignored = {path for path in accepted - found if effect_of(recipe, path).acts(recipe)}
    assert not ignored, f"accepted and read by nobody: {sorted(ignored)}"
    wrongly = {path for path in refused if effect_of(recipe, path).acts(recipe)}
    assert not wrongly, f"refused though it acts: {sorted(wrongly)}"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("anyo", ["method.objective.negatives=9"]),
        ("anyo", ["method.objective.pull_share=0.2"]),
        ("anyo", ["method.objective.kind=sampled", "method.objective.label_smoothing=0.1"]),
        ("anyo", ["backbone.width=64"]),
        ("anyo", ["history.title_tokens=9"]),
        ("anyo", ["adapter.kind=full", "adapter.rank=4"]),
        ("anyo", ["projector.recent=1", "projector.decay=0.5"]),
        ("anyo", ["backbone.revision=main"]),
        ("sasrec", ["items.text_dim=9"]),
        ("sasrec", ["items.text_source=minilm"]),
        ("sasrec", ["history.instruction=Read"]),
        ("sasrec", ["history.title_tokens=9"]),
        ("sasrec", ["projector.residual=true", "projector.kind=none", "backbone.depth=4"]),
        ("sasrec", ["projector.residual=true", "projector.kind=none", "history.dropout=0.4"]),
        ("sasrec", ["backbone.layers=1"]),
        ("sasrec", ["backbone.random_weights=true"]),
        ("sasrec", ["optimizer.backbone_rate=0.1"]),
        ("genre", ["items.tower=both"]),
        ("bigrec", ["items.text_source=minilm"]),
        ("bigrec", ["backbone.width=64"]),
        ("genre", ["optimizer.rate=0.1"]),
        ("genre", ["requires=sasrec"]),
        ("genre", ["index.kind=flat"]),
        ("tiger", ["items.tower=text"]),
        ("tiger", ["adapter.rank=4"]),
        ("tiger", ["history.title_tokens=9"]),
        ("tiger", ["method.codes.kind=residual-kmeans", "method.codes.epochs=9"]),
        ("p5", ["method.codes.epochs=9"]),
        ("p5", ["method.codes.dim=9"]),
        ("genre", ["method.codes.size=9"]),
        ("p5", ["method.codes.commitment=0.5"]),
        ("p5", ["items.text_source=tiny"]),
        ("p5", ['method.tasks.families=["sequential","rating"]', "method.tasks.review=0.3"]),
        ("p5", ["method.codes.kind=random", "method.codes.levels=2"]),
    ],
)
def test_a_setting_that_nothing_reads_is_refused_with_what_it_needs(name: str, settings: list[str]) -> None:
    path = settings[-1].partition("=")[0]
    with pytest.raises(RecipeError, match=rf"{path} has no effect on this recipe; it is read with \S"):
        get_recipe(name, settings)
