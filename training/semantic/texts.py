"""The frozen language model that says which items are alike; nothing of it goes into an artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from modeling.encoder.build import Sources, title_reader
from modeling.encoder.title_reader import read_or_reuse
from modeling.spec import ItemsSpec, ModelSpec
from training.data.item_texts import item_texts
from training.data.report import DataError
from training.data.splits import Split
from training.effects import Effect
from training.loop.budget import timed
from training.objectives.contrastive import SemanticSpec
from training.recipe import Recipe
from training.semantic.neighbours import Floats, unit

SMALLEST = 1e-6
MADE_HERE = "tiny"


def semantic_effects() -> Mapping[str, Effect]:
    """When a setting of ``method.semantic`` is read, by its path inside the section of the method."""

    def weighed(*names: str) -> Effect:
        def acts(recipe: Recipe) -> bool:
            spec: Any = recipe.method
            return any(getattr(spec.semantic, name) for name in names)

        return Effect(f"{' or '.join('method.semantic.' + name for name in names)} over 0", acts)

    either, users, items = weighed("users", "items"), weighed("users"), weighed("items")
    shared = ("count", "newest", "temperature", "source", "template", "random")
    return {f"semantic.{name}": either for name in shared} | {
        "semantic.dropout": users,
        "semantic.replaced": items,
    }


def check_semantic(recipe: Recipe, spec: SemanticSpec) -> None:
    """Raises ``ValueError`` for states that are not there, and for a model that has not read texts at large."""
    if not spec.used:
        return
    if not recipe.has_network:
        raise ValueError("method.semantic compares states of a network: projector.kind='none' has none")
    if spec.source == MADE_HERE:
        raise ValueError(
            f"method.semantic.source={MADE_HERE!r} is trained on this catalog; a pretrained language model is needed, "
            "such as 'minilm', a Hugging Face name or a folder"
        )


def text_vectors(
    spec: SemanticSpec, split: Split, histories: Sequence[NDArray[Any]], sources: Sources, console: Console
) -> Floats:
    """Unit vectors [N, C] of the texts of all items, less the mean of those that were chosen in training.

    States of a language model share one large direction, which would make all of them alike.

    Raises:
        DataError: the model reads all texts as one, or the template has no such column.
        BackboneError: it is not found.
    """
    texts = item_texts(split.dataset, spec.template)
    raw_NC = read_texts(spec.source, texts, sources, console, "method.semantic.source")
    return unit(raw_NC - raw_NC[np.unique(np.concatenate(histories))].mean(0))


def read_texts(source: str, texts: Sequence[str], sources: Sources, console: Console, setting: str) -> Floats:
    """Unit vectors [R, C] of texts; ``setting`` names ``source`` in messages. Raises as `text_vectors`."""
    model = ModelSpec(items=ItemsSpec(tower="text", text_source=source))
    reader = title_reader(model, Sources(vectors=sources.vectors, download=sources.download))
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"reading {len(texts)} texts ({source})", total=len(texts))
        raw_RC = read_or_reuse(reader, texts, sources.vectors, progress=timed(bar, task, "reading texts"))
    if not np.isfinite(raw_RC).all() or float(np.ptp(raw_RC, axis=0).max()) < SMALLEST:
        raise DataError(
            f"the backbone {source!r} reads all {len(raw_RC)} texts as one vector, so none is more alike than another; "
            f"take another {setting}"
        )
    return raw_RC
