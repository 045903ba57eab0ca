"""What a recipe is: the model's description and how it is trained, as one typed, frozen value."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from index.kinds.flat import FlatSpec
from index.spec import AnyIndexSpec, changed
from modeling.backbone.adapters import adapter_of
from modeling.methods.p5_prompts import Family
from modeling.spec import ModelSpec, Section, VectorPosition
from training.effects import EFFECTS
from training.objectives.base import ObjectiveSpec as ObjectiveSpec
from training.objectives.base import objective_class


class RecipeError(ValueError):
    """A recipe or one of its settings does not exist, or has a value that is not allowed."""


class OptimizerSpec(Section):
    """AdamW. ``backbone_rate`` is for pretrained weights and their adapter, ``rate`` for everything else."""

    rate: float = Field(1e-3, gt=0)
    backbone_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.02, ge=0, lt=1, description="share of the steps with a linearly rising rate")
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    epochs: int = Field(60, ge=1)
    patience: int = Field(8, ge=1, description="evaluations without a better NDCG@10 on validation before it stops")
    positions: int = Field(1280, ge=1, description="items with a loss in a global batch, about")
    clip: float = Field(5.0, gt=0, description="largest norm of the gradient")
    user_windows: int | None = Field(
        None, ge=1, description="most targets of a user in an epoch, drawn anew in each; None: all. Only where every "
        "target needs a pass of its own",
    )  # fmt: skip
    average_epochs: float = Field(
        0.0, ge=0, description="length of the running average of the weights, in epochs; 0 keeps the plain weights"
    )


class GenerationSpec(Section):
    """How a generative recipe is asked, on validation, on test and by default when it is served."""

    beams: int = Field(20, ge=1, description="texts written for a history; an answer rarely reaches beyond them")
    among: Literal["vocabulary", "children"] = Field(
        "vocabulary", description="what a token's probability is divided among, in training and in search: all tokens, "
        "or those that may follow in the trie; scoring 'trie' without task families only",
    )  # fmt: skip
    candidates: int = Field(20, ge=2, description="titles in a prompt to choose from, scoring 'choose' only")
    copying: int = Field(
        0, ge=0, description="positions of random text read first, to learn to copy, scoring 'choose' only; 0: none"
    )
    slots: VectorPosition = Field(
        "after", description="where an item's vector stands: after its title, or before it; scoring 'choose' only"
    )
    match: float = Field(
        0.0, ge=0, description="weight of a second loss: half-way through the layers, which candidate's slot is the "
        "answer's; scoring 'choose' only",
    )  # fmt: skip
    validation_users: int = Field(1000, ge=1, description="users written for after each epoch, to select the best")


class CodesSpec(Section):
    """What items are called by: ``levels`` codes, each one of ``size``, and one more that tells equal ones apart.

    Semantic IDs: ``rq-vae``, a residual quantiser in the middle of an autoencoder (Rajput et al. 2023);
    ``residual-kmeans``, level by level on the vectors themselves, which are those of the titles and, with
    ``collaborative``, of what stands near an item in histories (`training.data.cooccurrence`; the aim of LETTER, Wang
    et al. 2024, which trains the quantiser towards a recommender's vectors instead); ``semantic``, up to ``levels``
    categories of an item and its number among those alike, or residual k-means where the data has no categories.

    Identifiers of P5 and OpenP5 (Hua et al. 2023), from the training part alone: ``random`` and ``sequential`` are
    numbers (at random; in the order of first appearance) in pieces of ``size`` each, ``levels`` has no say;
    ``collaborative`` is the way in a tree of ``clusters`` parts a node, at most ``levels`` deep, to a leaf of ``size``
    items, and the number there.
    """

    kind: Literal["rq-vae", "residual-kmeans", "random", "sequential", "collaborative", "semantic"] = "rq-vae"
    levels: int = Field(3, ge=1)
    size: int = Field(256, ge=2)
    clusters: int = Field(20, ge=2, description="parts that a group of items is divided into, collaborative only")
    dim: int = Field(32, ge=2, description="width of the quantised vectors, rq-vae only")
    collaborative: float = Field(
        0.0, ge=0, lt=1, description="say of the histories beside that of the titles in the vectors of items, 0.5: "
        "as much; kinds made from vectors only",
    )  # fmt: skip
    commitment: float = Field(0.25, ge=0, description="beta of the commitment loss, rq-vae only")
    epochs: int = Field(300, ge=1, description="passes over the catalog, rq-vae only")


class TasksSpec(Section):
    """The task families of P5 that one model is trained on together.

    A share is the number of prompts of a family for every item with a target in the sequential one.
    """

    families: tuple[Family, ...] | None = Field(None, description="None: all that the data set has the columns for")
    rating: float = Field(0.1, ge=0)
    direct: float = Field(0.2, ge=0)
    explanation: float = Field(0.1, ge=0)
    review: float = Field(0.1, ge=0)
    candidates: int = Field(10, ge=2, description="items that the direct family chooses from")
    text_tokens: int = Field(32, ge=1, description="reviews and their summaries are cut at this many tokens")
    vocabulary: int = Field(2000, ge=400, description="tokens of words")
    whole_words: bool = Field(True, description="off: a control without the whole-word embedding")

    @model_validator(mode="after")
    def _the_sequential_family_is_served(self) -> TasksSpec:
        if self.families is not None and "sequential" not in self.families:
            raise ValueError(
                f"tasks.families={list(self.families)} lacks 'sequential', which is selected on and served"
            )
        return self


class Recipe(ModelSpec):
    """A method: the slots of the model, then objective, optimizer, scoring and what it builds on.

    ``scoring``: ``dense`` compares a vector with those of the items; ``trie`` writes an item's name (its title or its
    semantic ID, as ``history.form`` has it) token by token, along the trie of all names; ``ground`` writes a title
    freely and looks for the nearest ones; ``choose`` writes the title of one of ``writing.candidates`` candidates.
    """

    name: str
    summary: str
    source: str = Field(description="paper or document the method comes from")
    objective: ObjectiveSpec = ObjectiveSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    scoring: Literal["dense", "trie", "ground", "choose"] = "dense"
    writing: GenerationSpec = GenerationSpec()
    codes: CodesSpec = CodesSpec()
    index: AnyIndexSpec = Field(FlatSpec(), description="index that finds items for a user vector; kinds: index/kinds")
    tasks: TasksSpec | None = Field(None, description="task families put as prompts; None: names alone")
    requires: str | None = Field(None, description="recipe whose artifact gives the id table to start from")

    @model_validator(mode="after")
    def _pull_needs_an_anchor(self) -> Recipe:
        if self.objective.pull and self.requires is None:
            raise ValueError("objective.pull needs requires=<id recipe>: there is no id space to be pulled to")
        return self

    @model_validator(mode="after")
    def _parts_are_known(self) -> Recipe:
        adapter_of(self.adapter.kind)
        if self.items.tower == "encoder" and objective_class(self.objective.kind).needs_all:
            raise ValueError(
                f"objective.kind={self.objective.kind!r} compares with the vectors of all items, which "
                "items.tower='encoder' would have to encode for every batch: 'in_batch' is allowed"
            )
        return self

    @model_validator(mode="after")
    def _a_writer_needs_words(self) -> Recipe:
        form, writes = self.history.form, self.scoring != "dense"
        if self.scoring == "trie" and form not in ("titles", "codes"):
            raise ValueError(f"scoring='trie' writes titles or codes: history.form={form!r} is neither")
        if self.scoring in ("ground", "choose") and form != "titles":
            raise ValueError(f"scoring={self.scoring!r} writes titles: history.form={form!r} has none")
        if writes and form == "titles" and self.adapter.kind == "none":
            raise ValueError(f"scoring={self.scoring!r} with titles trains a language model: adapter.kind is 'none'")
        if self.tasks is not None and form != "codes":
            raise ValueError(f"tasks are put with codes: history.form={form!r} has none")
        if self.writing.copying and self.adapter.kind != "full":
            raise ValueError(
                f"writing.copying trains all of the backbone: adapter.kind={self.adapter.kind!r} is not allowed, "
                "'full' is"
            )
        if self.tasks is not None and self.backbone.kind != "decoder":
            raise ValueError(f"tasks are put to a decoder: backbone.kind={self.backbone.kind!r} is not allowed")
        if form == "codes" and not (self.scoring == "trie" and self.backbone.own):
            raise ValueError(
                f"history.form='codes' needs scoring='trie' (given {self.scoring!r}) and a network of its own, "
                f"backbone.source='none' (given {self.backbone.source!r})"
            )
        return self

    def model_spec(self) -> ModelSpec:
        """The part an artifact needs at serving time."""
        return ModelSpec(**{name: getattr(self, name) for name in ModelSpec.model_fields})


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """``recipe`` with ``slot.field=value`` settings applied; values are JSON, or text where that fails.

    Raises:
        RecipeError: no such slot or field, a value that is not allowed, or a setting that nothing reads.
    """
    data = recipe.model_dump()
    index = index_settings([setting for setting in settings if setting.startswith("index.")])
    seen: set[str] = set()
    for setting in settings:
        path, sign, text = setting.partition("=")
        if path in seen:
            raise RecipeError(f"setting {path} is given more than once; give it once")
        seen.add(path)
        slot, _, field = path.partition(".")
        if not sign:
            raise RecipeError(f"setting {setting!r} is not of the form slot.field=value")
        if not field:
            if slot not in ("requires",):
                raise RecipeError(f"setting {setting!r} is not of the form slot.field=value (or requires=RECIPE)")
            data[slot] = text or None
            continue
        if slot == "index" and field:  # its fields follow from its kind: see index_settings
            continue
        if not isinstance(data.get(slot), dict):
            slots = ", ".join(name for name, value in data.items() if isinstance(value, dict))
            raise RecipeError(f"setting {setting!r}: no slot {slot!r}; slots are {slots}")
        if field not in data[slot]:
            raise RecipeError(
                f"setting {setting!r}: slot {slot!r} has no field {field!r}; it has {', '.join(data[slot])}"
            )
        data[slot][field] = _value(text)
    if index:
        try:
            data["index"] = changed(recipe.index, index).model_dump()
        except ValueError as error:
            raise RecipeError(f"recipe {recipe.name!r}: {error}") from error
    try:
        found = Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "recipe"
        raise RecipeError(f"recipe {recipe.name!r}: {where}: {first['msg']} (given {first['input']!r:.80})") from error
    for path, _, text in (setting.partition("=") for setting in settings):
        effect = EFFECTS.get(path) or EFFECTS[path.partition(".")[0]]
        if not effect.acts(found) and not (path == "requires" and not text):
            raise RecipeError(
                f"setting {path}={text}: {path} has no effect on this recipe; it is read with {effect.where}"
            )
    return found


def index_settings(settings: Sequence[str]) -> dict[str, Any]:
    """The values of ``index.field=value`` settings by field; raises `RecipeError` for any other setting."""
    found = {}
    for setting in settings:
        path, sign, text = setting.partition("=")
        slot, _, field = path.partition(".")
        if not sign or slot != "index" or not field:
            raise RecipeError(f"setting {setting!r} is not of the form index.field=value")
        found[field] = _value(text)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None if text in ("None", "") else text
