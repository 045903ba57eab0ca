"""Which setting of a recipe acts under which condition: the one table behind "no effect".

A setting that is given and that nothing reads is refused rather than ignored. Every field of the sections that methods
share has a line here; a new one without a line fails ``tests/training/test_effects.py``. What only one kind of method
reads stands in the settings of that kind, and needs no line unless another of its settings switches it off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modeling.backbone.sources import NAMED, is_path
from modeling.encoder.capabilities import capabilities_of

Recipe = Any
"""A `training.recipe.Recipe`, whose module stands above this one."""

VECTOR_CODES = ("rq-vae", "residual-kmeans", "semantic")
"""Kinds of codes that are, or may be, made from vectors of titles."""


@dataclass(frozen=True)
class Effect:
    """When a setting is read: ``where`` in words, ``acts`` for a recipe."""

    where: str
    acts: Callable[[Recipe], bool]


def _dense(recipe: Recipe) -> bool:
    return bool(recipe.method.encodes)


def _language_model(recipe: Recipe) -> bool:
    return not recipe.backbone.own


def _dense_language_model(recipe: Recipe) -> bool:
    return _dense(recipe) and _language_model(recipe)


def _codes(recipe: Recipe) -> bool:
    return bool(recipe.history.form == "codes")


def code_effects() -> dict[str, Effect]:
    """Of the settings of codes, by their path inside a method's section."""

    def kinds(*names: str) -> Effect:
        def acts(recipe: Recipe) -> bool:
            spec = recipe.method.codes_spec
            return _codes(recipe) and spec is not None and spec.kind in names

        return Effect(f"history.form='codes' with method.codes.kind {' or '.join(names)}", acts)

    return {
        "codes.kind": CODES,
        "codes.levels": kinds("rq-vae", "residual-kmeans", "semantic", "collaborative"),
        "codes.size": CODES,
        "codes.clusters": kinds("collaborative"),
        "codes.dim": kinds("rq-vae"),
        "codes.collaborative": kinds(*VECTOR_CODES),
        "codes.commitment": kinds("rq-vae"),
        "codes.epochs": kinds("rq-vae"),
    }


def _title_codes(recipe: Recipe) -> bool:
    spec = recipe.method.codes_spec
    return _codes(recipe) and spec is not None and spec.kind in VECTOR_CODES


def _instructed(recipe: Recipe) -> bool:
    return _dense_language_model(recipe) or recipe.method.instructed


def _whole_name(recipe: Recipe) -> bool:
    """Whether a backbone is found by name, on a hub."""
    return _language_model(recipe) and recipe.backbone.source not in NAMED and not is_path(recipe.backbone.source)


def _reads_title_vectors(recipe: Recipe) -> bool:
    return _dense(recipe) and recipe.needs_text_vectors


def _whole_windows(recipe: Recipe) -> bool:
    """Every target needs a pass of its own."""
    return _dense(recipe) and not capabilities_of(recipe).every_boundary


def has_ids(recipe: Recipe) -> bool:
    """Whether a user encoder is trained and items have an id table that is read."""
    tower = recipe.items.tower
    return _dense(recipe) and tower != "encoder" and (tower != "text" or recipe.history.shows_ids)


def _item_width(recipe: Recipe) -> bool:
    """A table of items has the width ``items.dim``."""
    items, identity = recipe.items, recipe.projector.kind == "identity"
    shown = recipe.history.shows_ids and not items.words
    scored = not identity if items.untied else not items.words
    return _dense(recipe) and (shown or scored)


def _rate(recipe: Recipe) -> bool:
    """Something else than a language model is trained."""
    return _dense(recipe) or recipe.backbone.own or recipe.method.trains_beside


ALWAYS = Effect("every recipe", lambda recipe: True)
LEARNED = Effect("recipes that are trained by steps", lambda recipe: bool(recipe.method.learns))
DENSE = Effect("methods that train a user encoder", _dense)
CODES = Effect("history.form='codes'", _codes)
OWN_NETWORK = Effect(
    "backbone.source='none' with a network: projector.kind other than 'none'",
    lambda recipe: bool(recipe.backbone.own and recipe.has_network),
)
NETWORK = Effect("a network: projector.kind other than 'none'", lambda recipe: bool(recipe.has_network))
DENSE_NETWORK = Effect(
    "methods that train a user encoder with a network: projector.kind other than 'none'",
    lambda recipe: _dense(recipe) and recipe.has_network,
)
LORA = Effect("adapter.kind 'lora' or 'ilora'", lambda recipe: recipe.adapter.kind in ("lora", "ilora"))
EXPERTS = Effect("adapter.kind='ilora'", lambda recipe: recipe.adapter.kind == "ilora")
DENSE_LANGUAGE_MODEL = Effect("a language model as user encoder", _dense_language_model)
TITLE_VECTORS = Effect(
    "title vectors: items.tower 'text' or 'both', history.form='compressed', or codes made from titles",
    lambda recipe: _reads_title_vectors(recipe) or _title_codes(recipe),
)
ENCODER_DECODER = Effect(
    "backbone.kind='encoder-decoder'", lambda recipe: _codes(recipe) and recipe.backbone.kind == "encoder-decoder"
)
CLOSED = Effect(
    "a language model as user encoder with pooling.kind 'eos' or 'end_n'",
    lambda recipe: _dense_language_model(recipe) and recipe.pooling.kind in ("eos", "end_n"),
)

EFFECTS: dict[str, Effect] = {
    "history.form": ALWAYS,
    "history.vectors_per_item": Effect(
        "a user encoder with history.form='compressed' and a network",
        lambda recipe: _dense(recipe) and recipe.history.form == "compressed" and recipe.has_network,
    ),
    "history.ids": Effect(
        "a user encoder with history.form='compressed' and a network",
        lambda recipe: _dense(recipe) and recipe.history.form == "compressed" and recipe.has_network,
    ),
    "history.limit": ALWAYS,
    "history.title_tokens": Effect("history.form='titles' or 'text'", lambda recipe: recipe.history.reads_tokens),
    "history.instruction": Effect(
        "a language model as user encoder, or a method that puts an instruction before the history", _instructed
    ),
    "history.closing": CLOSED,
    "history.id_dropout": Effect(
        "a user encoder whose network reads ids",
        lambda recipe: _dense(recipe) and recipe.history.shows_ids and recipe.has_network,
    ),
    "history.dropout": NETWORK,
    "history.user_buckets": ENCODER_DECODER,
    "history.user_dropout": Effect(
        "backbone.kind='encoder-decoder' with history.user_buckets",
        lambda recipe: ENCODER_DECODER.acts(recipe) and recipe.history.user_buckets > 0,
    ),
    "backbone.source": ALWAYS,
    "backbone.kind": CODES,
    "backbone.revision": Effect("a backbone that is found on a hub, not in a folder", _whole_name),
    "backbone.attention": DENSE,
    "backbone.layers": DENSE_LANGUAGE_MODEL,
    "backbone.random_weights": DENSE_LANGUAGE_MODEL,
    "backbone.block": Effect(
        "a user encoder with backbone.source='none' and a network", lambda r: _dense(r) and OWN_NETWORK.acts(r)
    ),
    "backbone.width": OWN_NETWORK,
    "backbone.depth": OWN_NETWORK,
    "backbone.heads": OWN_NETWORK,
    "backbone.head_width": CODES,
    "backbone.feed_forward": CODES,
    "backbone.dropout": NETWORK,
    "pooling.kind": DENSE,
    "pooling.count": Effect(
        "pooling.kind 'last_n' or 'end_n'",
        lambda recipe: _dense(recipe) and recipe.pooling.kind in ("last_n", "end_n"),
    ),
    "adapter.kind": ALWAYS,
    "adapter.rank": LORA,
    "adapter.alpha": LORA,
    "adapter.dropout": LORA,
    "adapter.targets": LORA,
    "adapter.layers": LORA,
    "adapter.experts": EXPERTS,
    "adapter.gates": EXPERTS,
    "projector.kind": DENSE,
    "projector.side": DENSE,
    "projector.common": Effect(
        "projector.side='both'", lambda recipe: _dense(recipe) and recipe.projector.side == "both"
    ),
    "projector.residual": DENSE,
    "projector.recent": DENSE,
    "projector.decay": Effect("projector.recent over 1", lambda recipe: _dense(recipe) and recipe.projector.recent > 1),
    "projector.dropout": DENSE_NETWORK,
    "items.tower": DENSE,
    "items.dim": Effect(
        "a table whose width is not that of the backbone: not items.words alone, nor items.untied under "
        "projector.kind='identity' where histories show no ids",
        _item_width,
    ),
    "items.untied": DENSE,
    "items.bias": DENSE,
    "items.frozen": Effect("items with an id table", has_ids),
    "items.words": DENSE_LANGUAGE_MODEL,
    "items.id_dropout": Effect("items.tower='both'", lambda recipe: _dense(recipe) and recipe.items.tower == "both"),
    "items.cold": Effect("items.tower='both'", lambda recipe: _dense(recipe) and recipe.items.tower == "both"),
    "items.cold_cost": Effect("items.cold='mapped'", lambda recipe: _dense(recipe) and recipe.items.cold == "mapped"),
    "items.normalize": DENSE,
    "items.closing": Effect(
        "items.tower='encoder' with pooling.kind 'eos' or 'end_n'",
        lambda recipe: CLOSED.acts(recipe) and recipe.items.tower == "encoder",
    ),
    "items.text_source": TITLE_VECTORS,
    "items.text_layer": TITLE_VECTORS,
    "items.text_pooling": TITLE_VECTORS,
    "items.text_template": TITLE_VECTORS,
    "items.text_tokens": TITLE_VECTORS,
    "items.text_dim": Effect(
        "a user encoder with items.tower 'text' or 'both', or history.form='compressed'", _reads_title_vectors
    ),
    "index": DENSE,  # its fields are those of its kind, which takes no others
    "optimizer.rate": Effect(
        "recipes that train more than a language model, whose rate is optimizer.backbone_rate", _rate
    ),
    "optimizer.backbone_rate": Effect(
        "a language model that is trained: adapter.kind 'lora', 'ilora' or 'full'",
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
        "a user encoder where every target needs a pass of its own: attention, pooling or adapter", _whole_windows
    ),
    "optimizer.average_epochs": ALWAYS,
    "requires": Effect(
        "methods that build on another model, with an id table where a user encoder is trained",
        lambda recipe: recipe.method.builds_on and (has_ids(recipe) or not recipe.method.encodes),
    ),
}
"""Every setting of the shared sections that ``--set`` accepts."""
