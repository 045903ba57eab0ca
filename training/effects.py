"""Which setting of a recipe acts under which condition: the one table behind "no effect".

A setting that is given and that nothing reads is refused rather than ignored. Every field of every slot has a line
here; a new one without a line fails ``tests/training/test_effects.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modeling.encoder.capabilities import capabilities_of
from training.objectives.base import objective_class, objective_kinds

if TYPE_CHECKING:
    from training.recipes.base import Recipe

VECTOR_CODES = ("rq-vae", "residual-kmeans", "semantic")
"""Kinds of codes that are, or may be, made from vectors of titles."""


@dataclass(frozen=True)
class Effect:
    """When a setting is read: ``where`` in words, ``acts`` for a recipe."""

    where: str
    acts: Callable[[Recipe], bool]


def _dense(recipe: Recipe) -> bool:
    return recipe.scoring == "dense"


def _writes(recipe: Recipe) -> bool:
    return recipe.scoring != "dense"


def _language_model(recipe: Recipe) -> bool:
    return not recipe.backbone.own


def _dense_language_model(recipe: Recipe) -> bool:
    return _dense(recipe) and _language_model(recipe)


def _codes(recipe: Recipe) -> bool:
    return recipe.history.form == "codes"


def _code_kinds(*kinds: str) -> Effect:
    return Effect(
        f"history.form='codes' with codes.kind {' or '.join(kinds)}",
        lambda recipe: _codes(recipe) and recipe.codes.kind in kinds,
    )


def _families(*families: str) -> Effect:
    return Effect(
        f"task families with {' or '.join(families)}",
        lambda recipe: (
            recipe.tasks is not None
            and (recipe.tasks.families is None or any(family in recipe.tasks.families for family in families))
        ),
    )


def _instructed(recipe: Recipe) -> bool:
    return _dense_language_model(recipe) or recipe.scoring in ("ground", "choose")


def _whole_name(recipe: Recipe) -> bool:
    """Whether a backbone is found by name, on a hub."""
    return _language_model(recipe) and recipe.backbone.source not in ("tiny", "minilm") and not _folder(recipe)


def _folder(recipe: Recipe) -> bool:
    return Path(recipe.backbone.source).is_dir()


def _reads_title_vectors(recipe: Recipe) -> bool:
    return _dense(recipe) and recipe.needs_text_vectors


def _whole_windows(recipe: Recipe) -> bool:
    """Every target needs a pass of its own."""
    return _dense(recipe) and not capabilities_of(recipe).every_boundary


def _objective(setting: str) -> Effect:
    kinds = [kind for kind in objective_kinds() if setting in objective_class(kind).settings]
    return Effect(
        f"objective.kind {' or '.join(map(repr, kinds))}",
        lambda recipe: _dense(recipe) and recipe.objective.kind in kinds,
    )


def _has_ids(recipe: Recipe) -> bool:
    """Items have an id table."""
    return _dense(recipe) and recipe.items.tower != "encoder"


def _rate(recipe: Recipe) -> bool:
    """Something else than a language model is trained."""
    return _dense(recipe) or recipe.backbone.own or recipe.scoring == "choose"


ALWAYS = Effect("every recipe", lambda recipe: True)
DENSE = Effect("scoring='dense'", _dense)
WRITES = Effect("recipes that write", _writes)
CHOOSE = Effect("scoring='choose'", lambda recipe: recipe.scoring == "choose")
CODES = Effect("history.form='codes'", _codes)
OWN = Effect("backbone.source='none'", lambda recipe: recipe.backbone.own)
LORA = Effect("adapter.kind='lora'", lambda recipe: recipe.adapter.kind == "lora")
DENSE_LANGUAGE_MODEL = Effect("scoring='dense' with a language model as backbone", _dense_language_model)
TASKS = Effect("task families", lambda recipe: recipe.tasks is not None)
ENCODER_DECODER = Effect(
    "backbone.kind='encoder-decoder'", lambda recipe: _codes(recipe) and recipe.backbone.kind == "encoder-decoder"
)

EFFECTS: dict[str, Effect] = {
    "history.form": ALWAYS,
    "history.vectors_per_item": Effect(
        "scoring='dense' with history.form='compressed'",
        lambda recipe: _dense(recipe) and recipe.history.form == "compressed",
    ),
    "history.limit": ALWAYS,
    "history.title_tokens": Effect("history.form='titles' or 'text'", lambda recipe: recipe.history.reads_tokens),
    "history.instruction": Effect(
        "scoring='dense' with a language model as backbone, 'ground' or 'choose'", _instructed
    ),
    "history.id_dropout": Effect(
        "scoring='dense' with ids in the history", lambda recipe: _dense(recipe) and recipe.history.form != "text"
    ),
    "history.dropout": ALWAYS,
    "history.user_buckets": ENCODER_DECODER,
    "history.user_dropout": Effect(
        "backbone.kind='encoder-decoder' with history.user_buckets",
        lambda recipe: ENCODER_DECODER.acts(recipe) and recipe.history.user_buckets > 0,
    ),
    "backbone.source": ALWAYS,
    "backbone.kind": CODES,
    "backbone.revision": Effect("a backbone that is found on a hub, not in a folder", _whole_name),
    "backbone.attention": ALWAYS,
    "backbone.layers": DENSE_LANGUAGE_MODEL,
    "backbone.random_weights": DENSE_LANGUAGE_MODEL,
    "backbone.width": OWN,
    "backbone.depth": OWN,
    "backbone.heads": OWN,
    "backbone.head_width": CODES,
    "backbone.feed_forward": CODES,
    "backbone.dropout": ALWAYS,
    "pooling.kind": DENSE,
    "pooling.count": Effect("pooling.kind='last_n'", lambda recipe: _dense(recipe) and recipe.pooling.kind == "last_n"),
    "adapter.kind": ALWAYS,
    "adapter.rank": LORA,
    "adapter.alpha": LORA,
    "adapter.dropout": LORA,
    "adapter.targets": LORA,
    "projector.kind": DENSE,
    "projector.residual": DENSE,
    "projector.recent": DENSE,
    "projector.decay": Effect("projector.recent over 1", lambda recipe: _dense(recipe) and recipe.projector.recent > 1),
    "projector.dropout": DENSE,
    "items.tower": DENSE,
    "items.dim": DENSE,
    "items.normalize": DENSE,
    "items.text_source": Effect(
        "title vectors: items.tower 'text' or 'both', history.form='compressed', or codes made from titles",
        lambda recipe: _reads_title_vectors(recipe) or (_codes(recipe) and recipe.codes.kind in VECTOR_CODES),
    ),
    "items.text_dim": Effect(
        "scoring='dense' with items.tower 'text' or 'both', or history.form='compressed'", _reads_title_vectors
    ),
    "index": DENSE,  # its fields are those of its kind, which takes no others
    "objective.kind": DENSE,
    "objective.negatives": _objective("negatives"),
    "objective.popularity_power": _objective("popularity_power"),
    "objective.label_smoothing": _objective("label_smoothing"),
    "objective.logq": _objective("logq"),
    "objective.symmetric": _objective("symmetric"),
    "objective.pull": Effect("items with an id table", _has_ids),
    "objective.pull_share": Effect(
        "objective.pull over 0", lambda recipe: _dense(recipe) and recipe.objective.pull > 0
    ),
    "optimizer.rate": Effect(
        "recipes that train more than a language model, whose rate is optimizer.backbone_rate", _rate
    ),
    "optimizer.backbone_rate": Effect(
        "a language model that is trained: adapter.kind 'lora' or 'full'",
        lambda recipe: _language_model(recipe) and recipe.adapter.kind != "none",
    ),
    "optimizer.weight_decay": ALWAYS,
    "optimizer.warmup": ALWAYS,
    "optimizer.schedule": ALWAYS,
    "optimizer.epochs": ALWAYS,
    "optimizer.patience": ALWAYS,
    "optimizer.positions": ALWAYS,
    "optimizer.clip": ALWAYS,
    "optimizer.user_windows": Effect(
        "scoring='dense' where every target needs a pass of its own: attention, pooling or adapter", _whole_windows
    ),
    "optimizer.average_epochs": ALWAYS,
    "writing.beams": WRITES,
    "writing.among": Effect(
        "scoring='trie' without task families", lambda recipe: recipe.scoring == "trie" and recipe.tasks is None
    ),
    "writing.candidates": CHOOSE,
    "writing.copying": CHOOSE,
    "writing.slots": CHOOSE,
    "writing.match": CHOOSE,
    "writing.validation_users": WRITES,
    "codes.kind": CODES,
    "codes.levels": _code_kinds("rq-vae", "residual-kmeans", "semantic", "collaborative"),
    "codes.size": CODES,
    "codes.clusters": _code_kinds("collaborative"),
    "codes.dim": _code_kinds("rq-vae"),
    "codes.collaborative": _code_kinds(*VECTOR_CODES),
    "codes.commitment": _code_kinds("rq-vae"),
    "codes.epochs": _code_kinds("rq-vae"),
    "tasks.families": TASKS,
    "tasks.rating": _families("rating"),
    "tasks.direct": _families("direct"),
    "tasks.explanation": _families("explanation"),
    "tasks.review": _families("review"),
    "tasks.candidates": _families("direct"),
    "tasks.text_tokens": _families("explanation", "review"),
    "tasks.vocabulary": TASKS,
    "tasks.whole_words": TASKS,
    "requires": Effect(
        "scoring 'dense' with an id table, 'ground' or 'choose'",
        lambda recipe: _has_ids(recipe) or recipe.scoring in ("ground", "choose"),
    ),
}
"""Every setting that ``--set`` takes."""
