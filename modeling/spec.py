"""The typed description of a model: what has to be written down to rebuild it from an artifact.

A recipe (``training/recipes``) is a ``ModelSpec`` plus how it is trained. The service sees only the ``ModelSpec``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from modeling.text_template import TITLE_ALONE, TextTemplate

OWN_TRANSFORMER = "none"
"""Backbone source of the id models: a small causal transformer trained from scratch, no language model."""

VectorPosition = Literal["after", "before"]
"""Position of an item's vector relative to its title in a prompt with candidates."""


class Section(BaseModel):
    """One section of a recipe. Immutable; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HistorySpec(Section):
    """Encoding of a user's history as input positions of the backbone.

    ``ids``: one position per item, its id vector. ``titles``: the title's tokens, then one position with the id vector,
    at which the state is read. ``compressed``: one position (sum of text and id vector) or two (text, then id) per
    item, with titles encoded once, offline. ``codes``: the codes of its semantic ID, for recipes that generate them.
    ``text``: the title's tokens and a separator, without ids.
    """

    form: Literal["ids", "titles", "compressed", "text", "codes"] = "compressed"
    vectors_per_item: Literal[1, 2] = 1
    ids: bool = Field(True, description="compressed only: add an item's id vector to that of its text")
    limit: int = Field(50, ge=1, description="maximum number of items read; older items are left out")
    title_tokens: int = Field(24, ge=1, description="maximum tokens of a title")
    instruction: str = Field("", description="constant text before the history; empty: none")
    closing: str = Field("", description="constant text after the history, before the pooled tokens")
    id_dropout: float = Field(0.0, ge=0, lt=1, description="share of items whose id is replaced by UNKNOWN in training")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout on the input positions of items")
    user_buckets: int = Field(
        0, ge=0, description="number of tokens that user ids are hashed to, in front of a history; 0: none"
    )
    user_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of training histories with the unknown-user token instead of their own"
    )

    @model_validator(mode="after")
    def _two_vectors_are_for_compressed(self) -> HistorySpec:
        if self.vectors_per_item == 2 and self.form != "compressed":
            raise ValueError(f"vectors_per_item=2 needs form='compressed', and form is {self.form!r}")
        if not self.ids and (self.form != "compressed" or self.vectors_per_item == 2):
            raise ValueError(
                f"history.ids=false shows one vector an item, that of its text: form='compressed' and "
                f"vectors_per_item=1 are needed (given {self.form!r} and {self.vectors_per_item})"
            )
        return self

    @property
    def shows_ids(self) -> bool:
        """Whether id vectors reach the backbone."""
        return self.form != "text" and self.ids

    @property
    def reads_text(self) -> bool:
        """Whether the text of an item reaches the backbone."""
        return self.form in ("titles", "compressed", "text")

    @property
    def reads_tokens(self) -> bool:
        """Whether the tokens of titles stand in a prompt."""
        return self.form in ("titles", "text")


class BackboneSpec(Section):
    """The network that reads the positions. ``source`` is ``none``, ``tiny``, ``minilm``, a hub name or a folder.

    ``kind``: a ``decoder`` reads and writes one sequence; in an ``encoder-decoder`` an encoder of ``depth`` layers
    reads the history in both directions, and a decoder of as many layers writes.
    """

    source: str = OWN_TRANSFORMER
    kind: Literal["decoder", "encoder-decoder"] = "decoder"
    revision: str | None = None
    attention: Literal["causal", "bidirectional"] = "causal"
    layers: int | None = Field(None, ge=1, description="number of first layers to keep; None: all")
    random_weights: bool = Field(False, description="control: the same architecture with random initial weights")
    block: Literal["plain", "ligr"] = Field(
        "plain", description="layers of the own transformer: pre-normalised, or gated with SwiGLU (LiGR)"
    )
    width: int = Field(128, ge=8, description="hidden width, own transformer only")
    depth: int = Field(2, ge=1, description="number of layers, own transformer only")
    heads: int = Field(2, ge=1, description="attention heads, own transformer only")
    head_width: int | None = Field(
        None, ge=2, description="width of a head, over codes only; None: width / heads, or 64 in an encoder-decoder"
    )
    feed_forward: int | None = Field(
        None, ge=8, description="feed-forward width, over codes only; None: 4 × width, or 8 × in an encoder-decoder"
    )
    dropout: float = Field(
        0.1, ge=0, lt=1, description="dropout in training on the outputs of the backbone's blocks; for generative "
        "language models on the attention weights"
    )  # fmt: skip

    @model_validator(mode="after")
    def _heads_divide_width(self) -> BackboneSpec:
        if self.kind == "decoder" and self.head_width is None and self.width % self.heads:
            raise ValueError(f"backbone.heads={self.heads} does not divide backbone.width={self.width}")
        return self

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return self.head_width or (64 if self.kind == "encoder-decoder" else self.width // self.heads)

    @property
    def inner_size(self) -> int:
        """Inner width of the feed-forward."""
        return self.feed_forward or (8 if self.kind == "encoder-decoder" else 4) * self.width

    @property
    def own(self) -> bool:
        """Whether this is our small transformer rather than a language model."""
        return self.source == OWN_TRANSFORMER


TextPoolingKind = Literal["last", "eos", "mean", "weighted_mean", "cls", "last_n"]
PoolingKind = Literal[TextPoolingKind, "end_n"]


class PoolingSpec(Section):
    """Pooling of the states of a history into one; see `modeling.encoder.pooling`.

    ``last``: the state of the last item's last position. ``eos``: of an end token after it. ``cls``: of the first
    token. ``mean``, ``weighted_mean`` (weights 1, 2, 3, …): over all positions of items, without the instruction.
    ``last_n``: mean over the last ``count`` of them. ``end_n``: mean over ``count`` added tokens after the text.
    """

    kind: PoolingKind = "last"
    count: int = Field(4, ge=1, description="number of averaged positions, last_n and end_n only")


class AdapterSpec(Section):
    """The trained part of a pretrained backbone; ``kind`` names a file of `modeling.backbone.adapters`: ``none``,
    ``lora`` (Hu et al. 2021), ``ilora`` (Kong et al. 2024; low-rank experts with gates from the user's history), or
    ``full`` (all weights)."""

    kind: str = "none"
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str = Field("all-linear", description="PEFT target_modules: 'all-linear' or comma-separated suffixes")
    layers: int | None = Field(None, ge=1, description="number of last layers that have the adapter; None: all")
    experts: int = Field(4, ge=1, description="number of experts; they divide the rank; ilora only")
    gates: Literal["user", "uniform"] = Field(
        "user", description="weights of the experts: from a router, for each user, or uniform, as a control; ilora only"
    )

    @model_validator(mode="after")
    def _experts_divide_the_rank(self) -> AdapterSpec:
        if self.kind == "ilora" and self.rank % self.experts:
            raise ValueError(f"adapter.experts={self.experts} does not divide adapter.rank={self.rank}")
        return self


class ProjectorSpec(Section):
    """Map between the pooled state and the item vectors. ``none`` is a control without network: the user's vector is
    computed from the newest items only (``residual``).

    ``side`` selects what is mapped: the ``user``'s state to the space of the items; the vectors of ``items`` to that
    of the states; or ``both``, each by a map of its own, to a space of ``common`` dimensions.
    """

    kind: Literal["identity", "linear", "mlp", "none"] = "linear"
    side: Literal["user", "items", "both"] = Field("user", description="mapped side; kind 'linear' or 'mlp' only")
    common: int = Field(128, ge=2, description="width of the common space, side 'both' only")
    residual: bool = Field(
        False, description="add the vectors of the newest items, with learned weights, to the projected state"
    )
    recent: int = Field(1, ge=1, description="number of newest items whose vectors are added")
    decay: float = Field(0.8, gt=0, le=1, description="initial weight of an item relative to the next newer one")
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _recent_items_are_added(self) -> ProjectorSpec:
        if self.kind == "none" and not self.residual:
            raise ValueError(
                "projector.kind='none' needs projector.residual=true: nothing else is in the user's vector"
            )
        if self.side != "user" and self.kind not in ("linear", "mlp"):
            raise ValueError(f"projector.side={self.side!r} needs a map, kind 'linear' or 'mlp': given {self.kind!r}")
        if self.recent > 1 and not self.residual:
            raise ValueError(f"projector.recent={self.recent} needs projector.residual: nothing is added without it")
        return self


class ItemsSpec(Section):
    """The item tower: an id table, a linear map of whitened title vectors, or their sum; vectors have ``dim`` elements.

    Histories use the same id table. The own transformer reads it directly (SASRec's shared table), a language model
    through a learned input map. ``encoder``: the user encoder encodes an item like a history of its title only, so
    that titles are encoded by trained weights.

    With ``words`` the items are new words of the language model, as if its vocabulary had been extended
    (``resize_token_embeddings``): the id table has the model's width, is read directly, and starts at the mean
    embedding of each title's tokens.
    """

    tower: Literal["id", "text", "both", "encoder"] = "both"
    dim: int = Field(128, ge=2)
    id_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of items whose id is replaced by UNKNOWN in a training step, tower 'both' "
        "only, so that titles alone give good vectors (DropoutNet, Volkovs et al. 2017)"
    )  # fmt: skip
    cold: Literal["title", "mapped"] = Field(
        "title", description="vector of an item without training interactions, tower 'both' only. title: its title "
        "and the id of UNKNOWN; mapped: a linear map of its title, fitted on items with interactions (Gantner et al. "
        "2010), scaled to a length chosen on validation"
    )  # fmt: skip
    cold_cost: float = Field(
        0.02, gt=0, lt=1, description="largest relative loss of NDCG@10 and Recall@10 of the other items on validation "
        "when that length is chosen, mapped only"
    )  # fmt: skip
    normalize: bool = Field(True, description="score items by cosine; the trained scale only affects the softmax")
    untied: bool = Field(
        False, description="score items with a table that is not used in histories; it has the backbone's width if "
        "projector.kind is 'identity'",
    )  # fmt: skip
    bias: bool = Field(False, description="a learned bias of each item, stored as one more dimension")
    frozen: bool = Field(False, description="do not train the id table of the required model")
    words: bool = Field(False, description="items are new words of the language model, initialised from their titles")
    text_source: str | None = Field(
        None, description="backbone whose pooled states are the title vectors; None: the recipe's own"
    )
    text_layer: int | None = Field(None, ge=1, description="number of layers of that backbone to load; None: all")
    closing: str = Field("", description="as history.closing, after the title of an item, tower 'encoder' only")
    text_pooling: TextPoolingKind = Field(
        "mean", description="pooling of the states of a title, as pooling.kind, including special tokens"
    )
    text_template: str = Field(
        TITLE_ALONE, max_length=1024, description="template of an item's text, from columns of the items file: "
        "'{title}. {brand}. {categories}. {price}'; free titles in a history are used without it"
    )  # fmt: skip
    text_tokens: int = Field(48, ge=1, description="maximum tokens of an item's text")
    text_dim: int = Field(384, ge=2, description="maximum dimension of whitened title vectors")

    @field_validator("text_template")
    @classmethod
    def _template_is_one(cls, value: str) -> str:
        """Raises `TemplateError`."""
        TextTemplate.parse(value)
        return value

    @model_validator(mode="after")
    def _a_map_leads_from_titles_to_ids(self) -> ItemsSpec:
        for name, given in (("cold", self.cold == "mapped"), ("id_dropout", self.id_dropout > 0)):
            if given and self.tower != "both":
                raise ValueError(f"items.{name} needs items.tower='both', titles beside ids: given {self.tower!r}")
        if self.cold == "mapped" and (self.untied or self.bias):
            raise ValueError(
                "items.cold='mapped' makes vectors of one table: items.untied and items.bias are false with it"
            )
        if self.cold == "mapped" and not self.normalize:
            raise ValueError("items.cold='mapped' chooses a length beside vectors of length 1: items.normalize=true")
        return self


class ModelSpec(Section):
    """Everything needed to rebuild a trained user encoder and its item tower."""

    history: HistorySpec = HistorySpec()
    backbone: BackboneSpec = BackboneSpec()
    pooling: PoolingSpec = PoolingSpec()
    adapter: AdapterSpec = AdapterSpec()
    projector: ProjectorSpec = ProjectorSpec()
    items: ItemsSpec = ItemsSpec()

    @model_validator(mode="before")
    @classmethod
    def _pooling_was_a_name(cls, data: Any) -> Any:
        """The oldest manifests hold the pooling's name alone."""
        if isinstance(data, dict) and isinstance(data.get("pooling"), str):
            return {**data, "pooling": {"kind": data["pooling"]}}
        return data

    @model_validator(mode="after")
    def _slots_fit_together(self) -> ModelSpec:
        own = self.backbone.own
        if own and self.history.reads_tokens:
            raise ValueError(f"history.form={self.history.form!r} needs a language model: backbone.source is 'none'")
        if own and self.adapter.kind != "none":
            raise ValueError(
                f"adapter.kind={self.adapter.kind!r} needs a pretrained backbone: backbone.source is 'none', "
                "which is always trained whole"
            )
        if self.projector.kind == "identity" and not own and not (self.items.untied or self.items.words):
            raise ValueError(
                "projector.kind='identity' over a language model needs items.untied or items.words: no other table has "
                "its width"
            )
        same = self.backbone.width == self.items.dim
        if self.projector.kind == "identity" and own and not (same or self.items.untied):
            raise ValueError(
                f"projector.kind='identity' needs backbone.width ({self.backbone.width}) = items.dim ({self.items.dim})"
            )
        if self.needs_text_vectors and own and self.items.text_source is None:
            raise ValueError("a text tower beside backbone.source='none' needs items.text_source, e.g. 'minilm'")
        return self

    @model_validator(mode="after")
    def _pooling_fits(self) -> ModelSpec:
        kind = self.pooling.kind
        if kind in ("cls", "eos") and self.backbone.own:
            raise ValueError(f"pooling.kind={kind!r} reads a special token: backbone.source='none' has none")
        if kind == "end_n" and self.history.form != "text":
            raise ValueError(f"pooling.kind='end_n' sums up a text, history.form='text': given {self.history.form!r}")
        if kind == "cls" and self.backbone.attention == "causal":
            raise ValueError("pooling.kind='cls' needs backbone.attention='bidirectional': a first token sees itself")
        return self

    @model_validator(mode="after")
    def _one_tower_reads_titles(self) -> ModelSpec:
        if self.items.tower == "encoder" and self.history.form != "text":
            raise ValueError(
                f"items.tower='encoder' reads titles as histories do, history.form='text': given {self.history.form!r}"
            )
        if self.projector.residual and self.history.form == "text":
            raise ValueError("projector.residual adds the items' own vectors: history.form='text' reads titles alone")
        return self

    @model_validator(mode="after")
    def _tables_fit(self) -> ModelSpec:
        items, form = self.items, self.history.form
        if items.untied and items.tower not in ("id", "both"):
            raise ValueError(f"items.untied is a second id table: items.tower={items.tower!r} has none")
        if self.projector.side != "user" and (
            items.tower == "encoder" or items.untied or items.words or items.cold == "mapped"
        ):
            raise ValueError(
                f"projector.side={self.projector.side!r} maps the one table of items: items.tower 'id', 'text' or "
                "'both', no items.untied, no items.words and items.cold='title' are needed"
            )
        if not self.history.ids and items.frozen:
            raise ValueError("items.frozen keeps the id table that a history shows: history.ids is false")
        if items.bias and items.tower == "encoder":
            raise ValueError("items.bias needs items that are known in training: items.tower='encoder' reads any title")
        if items.words and (self.backbone.own or items.tower != "id" or form not in ("ids", "titles")):
            raise ValueError(
                "items.words needs a language model, items.tower='id' and history.form 'ids' or 'titles' (given "
                f"backbone.source={self.backbone.source!r}, {items.tower!r} and {form!r})"
            )
        if items.frozen and (items.words or items.tower not in ("id", "both") or form == "text"):
            raise ValueError("items.frozen keeps the id table that a history shows: there is none, or it is made here")
        return self

    @model_validator(mode="after")
    def _no_network_reads_nothing(self) -> ModelSpec:
        if self.has_network:
            return self
        form, tower = self.history.form, self.items.tower
        if not self.backbone.own or self.backbone.attention != "causal" or self.pooling.kind != "last":
            raise ValueError(
                "projector.kind='none' has no network: backbone.source='none', backbone.attention='causal' and "
                f"pooling.kind='last' are allowed (given {self.backbone.source!r}, {self.backbone.attention!r}, "
                f"{self.pooling.kind!r})"
            )
        if form != "ids" and not (form == "compressed" and tower in ("text", "both")):
            raise ValueError(
                "projector.kind='none' reads the vectors of items: history.form='ids' is allowed, and 'compressed' "
                f"with items.tower 'text' or 'both' (given {form!r} with {tower!r})"
            )
        return self

    @property
    def has_network(self) -> bool:
        """Whether a network reads the history."""
        return self.projector.kind != "none"

    @property
    def needs_text_vectors(self) -> bool:
        """Whether offline title vectors are an input (of the item tower or of the compressed history)."""
        return self.items.tower in ("text", "both") or self.history.form == "compressed"

    @property
    def text_backbone(self) -> str:
        """Source of the model that reads titles offline."""
        return self.items.text_source or self.backbone.source
