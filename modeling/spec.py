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
"""Where an item's vector stands, beside its title, in a prompt to choose from."""


class Section(BaseModel):
    """One slot of a recipe: immutable, and a misspelt field is an error rather than a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HistorySpec(Section):
    """How a user's history becomes the input positions of the backbone.

    ``ids``: one position an item, its id vector. ``titles``: the title's tokens, then one position holding the id
    vector, which is also where the state is read. ``compressed``: one position (text and id vector added) or two
    (text, then id) an item, the title having been read once, offline. ``codes``: the codes of its semantic ID, for
    recipes that write them. ``text``: the title's tokens and a separator, and no id anywhere.
    """

    form: Literal["ids", "titles", "compressed", "text", "codes"] = "compressed"
    vectors_per_item: Literal[1, 2] = 1
    ids: bool = Field(True, description="compressed only: show an item's id vector beside that of its text")
    limit: int = Field(50, ge=1, description="newest items read; older ones are left out")
    title_tokens: int = Field(24, ge=1, description="titles are cut at this many tokens")
    instruction: str = Field("", description="static text before the history; empty for none")
    closing: str = Field("", description="static text behind the history, before the tokens that are pooled")
    id_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of items shown without their id, so that UNKNOWN is trained"
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout on the item positions of the input")
    user_buckets: int = Field(
        0, ge=0, description="tokens that user ids are hashed to, one of which begins a history; 0 for none"
    )
    user_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of histories shown without their user, so that nobody's are trained too"
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
    layers: int | None = Field(None, ge=1, description="keep only the first layers; None keeps all")
    random_weights: bool = Field(
        False, description="control: the same architecture with random weights, trained as the recipe says"
    )
    block: Literal["plain", "ligr"] = Field(
        "plain", description="layers of the own transformer: pre-normalised, or gated ones with a SwiGLU (LiGR)"
    )
    width: int = Field(128, ge=8, description="own transformer only")
    depth: int = Field(2, ge=1, description="own transformer only")
    heads: int = Field(2, ge=1, description="own transformer only")
    head_width: int | None = Field(
        None, ge=2, description="networks over codes only; None: width / heads, in an encoder-decoder 64"
    )
    feed_forward: int | None = Field(
        None, ge=8, description="inner width, networks over codes only; None: 4 × width, in an encoder-decoder 8 ×"
    )
    dropout: float = Field(
        0.1, ge=0, lt=1, description="while training: on what the blocks of the backbone add; on the attention's "
        "weights where a language model writes"
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
    """How the states of a history become one: see `modeling.encoder.pooling`.

    ``last``: the state of the last item's last position. ``eos``: of an end token behind it. ``cls``: of the first
    token. ``mean``, ``weighted_mean`` (weights 1, 2, 3, …): over all positions of items; the instruction is left out.
    ``last_n``: mean over the last ``count`` of them. ``end_n``: over ``count`` tokens made for it, behind the text.
    """

    kind: PoolingKind = "last"
    count: int = Field(4, ge=1, description="positions that are averaged, last_n and end_n only")


class AdapterSpec(Section):
    """The trained part of a pretrained backbone; ``kind`` names a file of `modeling.backbone.adapters`: ``none``,
    ``lora`` (Hu et al. 2021), ``ilora`` (Kong et al. 2024), its matrices cut into experts that a user's history gates,
    or ``full``, every weight."""

    kind: str = "none"
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str = Field("all-linear", description="PEFT target_modules: 'all-linear' or comma-separated suffixes")
    layers: int | None = Field(None, ge=1, description="only the last so many layers have it; None: all of them")
    experts: int = Field(4, ge=1, description="blocks that the rank is cut into, ilora only")
    gates: Literal["user", "uniform"] = Field(
        "user", description="weights of the experts: a router's for each user, or equal ones, the control; ilora only"
    )

    @model_validator(mode="after")
    def _experts_divide_the_rank(self) -> AdapterSpec:
        if self.kind == "ilora" and self.rank % self.experts:
            raise ValueError(f"adapter.experts={self.experts} does not divide adapter.rank={self.rank}")
        return self


class ProjectorSpec(Section):
    """Between the pooled state and the vectors of items. ``none``: there is no state and no network; the user's vector
    is made of the newest items alone (``residual``), the control of what a network adds.

    ``side`` says what is mapped: the ``user``'s state into the space of the items; the vectors of ``items`` into that
    of the states; or ``both``, each by a map of its own, into a space of ``common`` dimensions.
    """

    kind: Literal["identity", "linear", "mlp", "none"] = "linear"
    side: Literal["user", "items", "both"] = Field("user", description="what is mapped; kind 'linear' or 'mlp' only")
    common: int = Field(128, ge=2, description="width of the space that both sides are mapped into, side 'both' only")
    residual: bool = Field(
        False, description="add the newest items' own vectors, with learned weights, to the projected state"
    )
    recent: int = Field(1, ge=1, description="newest items whose vectors are added")
    decay: float = Field(0.8, gt=0, le=1, description="what each step back counts of the one after it, at first")
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
    """The item tower: an id table, a linear map of whitened title vectors, or their sum; ``dim`` numbers an item.

    The history shows the same id table. The own transformer reads it as it is (SASRec's shared table); a language
    model reads it through a learned input map. ``encoder``: an item's vector is that of a history of its title alone,
    read by the user encoder itself, so that titles are encoded by what is trained.

    With ``words`` the items are new words of the language model, as if its vocabulary had been extended
    (``resize_token_embeddings``): the id table has its width, is read as it is, and starts at the mean of each title's
    words.
    """

    tower: Literal["id", "text", "both", "encoder"] = "both"
    dim: int = Field(128, ge=2)
    id_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of items that have the id of UNKNOWN in a training step, tower 'both' "
        "only: their titles learn to speak for them on the scale of all others (DropoutNet, Volkovs et al. 2017)"
    )  # fmt: skip
    cold: Literal["title", "mapped"] = Field(
        "title", description="vector of an item without training interactions, tower 'both' only. title: its title "
        "and the id of UNKNOWN; mapped: what a linear map, fitted on the items that were chosen, makes of its title "
        "(Gantner et al. 2010), at a length chosen on validation"
    )  # fmt: skip
    cold_cost: float = Field(
        0.02, gt=0, lt=1, description="share of NDCG@10 and of Recall@10 on validation that the other items may lose "
        "to them, mapped only"
    )  # fmt: skip
    normalize: bool = Field(True, description="score = cosine; the trained scale only sharpens the softmax")
    untied: bool = Field(
        False, description="score items by a table of their own, which no history shows; it has the width of the "
        "backbone where projector.kind is 'identity'",
    )  # fmt: skip
    bias: bool = Field(False, description="a learned constant of each item in its score, as one more dimension")
    frozen: bool = Field(False, description="keep the id table of the required model as it is")
    words: bool = Field(False, description="items are new words of the language model, which start from their titles")
    text_source: str | None = Field(
        None, description="backbone whose pooled states are the title vectors; None: the recipe's own"
    )
    text_layer: int | None = Field(
        None, ge=1, description="layers of that backbone that are run, the rest is not loaded; None: all"
    )
    closing: str = Field("", description="as history.closing, behind the title of an item, tower 'encoder' only")
    text_pooling: TextPoolingKind = Field(
        "mean", description="which states of a title are its vector, as pooling.kind; special tokens are among them"
    )
    text_template: str = Field(
        TITLE_ALONE, max_length=1024, description="text of an item that this backbone reads, from columns of the items "
        "file: '{title}. {brand}. {categories}. {price}'; free titles in a history stay titles"
    )  # fmt: skip
    text_tokens: int = Field(48, ge=1, description="tokens of an item's text that are read")
    text_dim: int = Field(384, ge=2, description="whitened title vectors keep at most this many dimensions")

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
