"""Artifacts of the race of dense and generative methods on one model: made in seconds each, for timing, and kept.

What a request costs does not depend on what a model has learned, as long as texts end where titles end. So nothing is
trained but what has to: `bigrec` and `llara` must learn to end a text, from a few windows in the last layers. `genre`,
`tiger` and `p5` write along a trie, which ends their texts. Each artifact stands in its own folder when it ends, and
a repeated command goes on with the next one.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from transformers import AutoConfig

from benchmarks.lib.small import NO_TEXT, TIMING_ONLY, write_backbone, write_small
from modeling.backbone.loading import resolve_source
from modeling.encoder.build import build_model
from modeling.inference.precision_choice import settle
from training.data.dataset import Dataset, assemble
from training.data.splits import Split
from training.export import write_artifact, write_list_artifact
from training.loop.fit import FitOptions, Fitted
from training.methods.base_generative import fit_generative
from training.recipe import Recipe
from training.recipes import get_recipe
from training.recipes.anyo import recipe as anyo

HISTORY, GOLDEN = 10, 3
DENSE, COMPRESSED, SHALLOW = "dense", "dense-compressed", "dense-recipe"
READ = [f"history.limit={HISTORY}", "optimizer.epochs=1", "method.validation_users=2", "optimizer.warmup=0",
        "optimizer.schedule=constant"]  # fmt: skip
TITLES = [*READ, "optimizer.backbone_rate=1e-3"]
WINDOWS = ["method.sequences=24", "method.kept_states=fp16", "method.prompt_loss=false"]
# Of a pretrained model the last layers are trained, of `small`, which knows nothing, all.
TUNED_LAYERS, FEW_TARGETS = 2, ["optimizer.positions=16"]
ALL_LAYERS = ["adapter.kind=full", "optimizer.positions=64"]
WRITERS = ("bigrec", "genre", "llara", "tiger", "p5")
OVER_CODES = ("tiger", "p5")
CODES = 256
"""Codes of a level of TIGER's semantic IDs, at most one an item."""
TRAINED = {"bigrec": 4, "llara": 1}
"""Epochs of those that have to learn where a text ends."""
MINUTES = 0.5
"""After which the training of one of a pretrained model stops."""


@dataclass(frozen=True)
class Race:
    """Everything that decides the artifacts.

    Attributes:
        split: of the data, with all its items or the most popular ones.
        out: folder of the artifacts.
        backbone: that all language models come from; None: `small`, random weights of a fixed shape.
        minutes: of training of a writer that has to learn.
        console: for progress.
    """

    split: Split
    out: Path
    backbone: str | None
    minutes: float
    console: Console

    @property
    def pretrained(self) -> bool:
        """Whether the language models have learned from text."""
        return self.backbone is not None

    @property
    def source(self) -> str:
        """Of the language models, as recipes name it."""
        return str(self.backbone or self.out / "small")

    @property
    def title_tokens(self) -> str:
        """Setting: most tokens of a title that are read and written; with a pretrained tokenizer as recipes have it."""
        return f"history.title_tokens={16 if self.pretrained else 24}"

    def folder(self, name: str) -> Path:
        """Of an artifact."""
        return self.out / f"{name}-{Path(self.backbone or 'small').name}"


def bounded(dataset: Dataset, items: int) -> Dataset:
    """The data set with so many of its most popular items, and the interactions with them."""
    if items >= dataset.n_items:
        return dataset
    rows = np.argsort(-np.bincount(dataset.rows, minlength=dataset.n_items), kind="stable")[:items]
    kept = np.isin(dataset.rows, rows)
    users = np.repeat(np.arange(dataset.n_users), dataset.lengths_U)[kept]
    interactions = pl.DataFrame(
        {
            "user_id": [dataset.user_ids[user] for user in users.tolist()],
            "item_id": [dataset.item_ids[row] for row in dataset.rows[kept].tolist()],
            "timestamp": dataset.timestamps[kept],
        }
    )
    sha256 = hashlib.sha256(f"{dataset.sha256} {items}".encode()).hexdigest()
    return assemble(dataset.name, dataset.items[np.sort(rows)], interactions, sha256, dataset.report)


def names_of(race: Race) -> list[str]:
    """Of all artifacts of a race, in the order in which they are made."""
    layers = None if race.backbone is None else anyo(race.backbone).backbone.layers
    return [DENSE, COMPRESSED, *([SHALLOW] if layers is not None else []), *WRITERS]


def make(race: Race, name: str) -> Path:
    """The folder of an artifact, made now unless it was before."""
    folder = race.folder(name)
    if not (folder / "manifest.json").exists():
        if race.backbone is None and not (race.out / "small" / "config.json").exists():
            write_backbone(race.out / "small", race.split.dataset.titles)
        _make_dense(race, name, folder) if name in (DENSE, COMPRESSED, SHALLOW) else _make_writer(race, name, folder)
    return folder


def _make_dense(race: Race, name: str, folder: Path) -> None:
    """A dense artifact that has learned nothing. Without title vectors: positions are rows of a table all the same."""
    settings = [*NO_TEXT, f"history.limit={HISTORY}"]
    if name == DENSE:
        settings.append(race.title_tokens)
    if race.pretrained and name != SHALLOW:
        settings.append(f"backbone.layers={_shape(race.source).num_hidden_layers}")
    form = "titles" if name == DENSE else "ids"
    write_small(
        race.split, folder, form, race.console, settings=settings, backbone=race.backbone, golden_histories=GOLDEN
    )


def _make_writer(race: Race, name: str, folder: Path) -> None:
    recipe, work = writer_recipe(race, name), folder.parent / f".{folder.name}"
    precision = settle("auto", "cpu", training=True).taken
    options = FitOptions(
        work, epochs=TRAINED.get(name) if race.pretrained else None, minutes=race.minutes,
        precision="bf16" if precision == "bf16" else "fp32", cache=folder.parent / ".cache",
    )  # fmt: skip
    chooser = _id_model(race) if recipe.requires else None
    fitted = fit_generative(recipe, race.split, options, folder=None, collaborative=chooser, console=race.console)
    write_list_artifact(
        folder, recipe, race.split, fitted.writer, fitted_on="train", metrics={}, training=TIMING_ONLY,
        golden_histories=GOLDEN,
    )  # fmt: skip
    shutil.rmtree(work, ignore_errors=True)  # checkpoints of hundreds of megabytes


def writer_recipe(race: Race, name: str) -> Recipe:
    """The recipe of a writer; what need not learn is left as it is, be it pretrained or random."""
    if name in OVER_CODES:
        codes = ["method.codes.kind=residual-kmeans", f"method.codes.size={min(CODES, race.split.dataset.n_items)}"]
        settings = [*READ, *(codes if name == "tiger" else []), *_own_network(race)]
    elif race.pretrained:
        layers = min(TUNED_LAYERS, _shape(race.source).num_hidden_layers - 1)
        settings = [
            *TITLES,
            race.title_tokens,
            *FEW_TARGETS,
            f"adapter.layers={layers}",
            *(WINDOWS if name == "bigrec" else []),
        ]
    else:
        settings = [*TITLES, race.title_tokens, *ALL_LAYERS]
    recipe = get_recipe(name, settings, backbone=None if name in OVER_CODES else race.source)
    learns = name in TRAINED or (not race.pretrained and name not in OVER_CODES)
    return recipe if learns else _untrained(recipe)


def _untrained(recipe: Recipe) -> Recipe:
    """A recipe that trains nothing. `Recipe` itself refuses that where answers are random; here they are only timed."""
    return recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"epochs": 0})})


def _own_network(race: Race) -> Sequence[str]:
    """Settings of a network over codes, as wide and as deep as the language model."""
    shape = _shape(race.source)
    return [
        f"backbone.width={shape.hidden_size}", f"backbone.depth={shape.num_hidden_layers}",
        f"backbone.heads={shape.num_attention_heads}", f"backbone.feed_forward={shape.intermediate_size}",
    ]  # fmt: skip


def _shape(source: str) -> Any:
    return AutoConfig.from_pretrained(resolve_source(source))


def _id_model(race: Race) -> Path:
    """A `sasrec` that has learned nothing: what it costs to ask it is real."""
    folder = race.out / "sasrec"
    if not (folder / "manifest.json").exists():
        recipe = get_recipe("sasrec", [])
        model = build_model(recipe.model_spec(), catalog_size=race.split.dataset.n_items)
        write_artifact(
            folder, recipe, race.split, Fitted(model), fitted_on="train", metrics={}, training=TIMING_ONLY,
            golden_histories=GOLDEN,
        )  # fmt: skip
    return folder
