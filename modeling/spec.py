"""The typed description of a model: what has to be written down to rebuild it from an artifact.

A recipe (``training/recipes``) is a ``ModelSpec`` plus how it is trained. The service sees only the ``ModelSpec``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
    recipes that write them.
    """

    form: Literal["ids", "titles", "compressed", "codes"] = "compressed"
    vectors_per_item: Literal[1, 2] = 1
    limit: int = Field(50, ge=1, description="newest items read; older ones are left out")
    title_tokens: int = Field(24, ge=1, description="titles are cut at this many tokens")
    instruction: str = Field("", description="static text before the history; empty for none")
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
        return self

    @property
    def reads_text(self) -> bool:
        """Whether the text of an item reaches the backbone."""
        return self.form in ("titles", "compressed")


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


class AdapterSpec(Section):
    """What of a pretrained backbone is trained: nothing, LoRA matrices (Hu et al. 2021), or every weight."""

    kind: Literal["none", "lora", "full"] = "none"
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str = Field("all-linear", description="PEFT target_modules: 'all-linear' or comma-separated suffixes")


class ProjectorSpec(Section):
    """From the pooled state to the item space."""

    kind: Literal["identity", "linear", "mlp"] = "linear"
    residual: bool = Field(
        False, description="add the newest items' own vectors, with learned weights, to the projected state"
    )
    recent: int = Field(1, ge=1, description="newest items whose vectors are added")
    decay: float = Field(0.8, gt=0, le=1, description="what each step back counts of the one after it, at first")
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _recent_items_are_added(self) -> ProjectorSpec:
        if self.recent > 1 and not self.residual:
            raise ValueError(f"projector.recent={self.recent} needs projector.residual: nothing is added without it")
        return self


class ItemsSpec(Section):
    """The item tower: an id table, a linear map of whitened title vectors, or their sum; ``dim`` numbers an item.

    The history shows the same id table. The own transformer reads it as it is (SASRec's shared table); a language
    model reads it through a learned input map.
    """

    tower: Literal["id", "text", "both"] = "both"
    dim: int = Field(128, ge=2)
    normalize: bool = Field(True, description="score = cosine; the trained scale only sharpens the softmax")
    text_source: str | None = Field(
        None, description="backbone whose mean-pooled states are the title vectors; None: the recipe's own"
    )
    text_dim: int = Field(384, ge=2, description="whitened title vectors keep at most this many dimensions")


class ModelSpec(Section):
    """Everything needed to rebuild a trained user encoder and its item tower."""

    history: HistorySpec = HistorySpec()
    backbone: BackboneSpec = BackboneSpec()
    adapter: AdapterSpec = AdapterSpec()
    projector: ProjectorSpec = ProjectorSpec()
    items: ItemsSpec = ItemsSpec()

    @model_validator(mode="before")
    @classmethod
    def _without_pooling(cls, data: Any) -> Any:
        """Older manifests say that the last state is pooled, which is the only way there is."""
        if isinstance(data, dict) and data.get("pooling") == "last":
            return {name: value for name, value in data.items() if name != "pooling"}
        return data

    @model_validator(mode="after")
    def _slots_fit_together(self) -> ModelSpec:
        if self.backbone.own and self.history.form == "titles":
            raise ValueError("history.form='titles' needs a language model: backbone.source is 'none'")
        if self.backbone.own and self.adapter.kind != "none":
            raise ValueError(
                f"adapter.kind={self.adapter.kind!r} needs a pretrained backbone: backbone.source is 'none', "
                "which is always trained whole"
            )
        if self.projector.kind == "identity" and not self.backbone.own:
            raise ValueError("projector.kind='identity' needs the own transformer (backbone.source='none')")
        if self.projector.kind == "identity" and self.backbone.width != self.items.dim:
            raise ValueError(
                f"projector.kind='identity' needs backbone.width ({self.backbone.width}) = items.dim ({self.items.dim})"
            )
        if self.needs_text_vectors and self.backbone.own and self.items.text_source is None:
            raise ValueError("a text tower beside backbone.source='none' needs items.text_source, e.g. 'minilm'")
        if self.backbone.attention == "bidirectional":
            raise ValueError(
                "backbone.attention='bidirectional' is for text towers; a user encoder reads a growing history and "
                "is trained at every item boundary, which needs 'causal'"
            )
        return self

    @property
    def needs_text_vectors(self) -> bool:
        """Whether offline title vectors are an input (of the item tower or of the compressed history)."""
        return self.items.tower != "id" or self.history.form == "compressed"

    @property
    def text_backbone(self) -> str:
        """Source of the model that reads titles offline."""
        return self.items.text_source or self.backbone.source


class Capabilities(Section):
    """What follows from a ``ModelSpec``; stored in the manifest for readers that do not know the code."""

    reads: tuple[Literal["ids", "text"], ...]
    causal: bool

    @model_validator(mode="before")
    @classmethod
    def _without_unread(cls, data: Any) -> Any:
        """Older manifests hold three more, which nothing ever read."""
        if isinstance(data, dict):
            return {name: data[name] for name in data if name not in ("prefix_cacheable", "mergeable", "cold_start")}
        return data

    @classmethod
    def of(cls, spec: ModelSpec) -> Capabilities:
        """Compute the capabilities of a model from its description."""
        reads: tuple[Literal["ids", "text"], ...] = ("ids", "text") if spec.history.reads_text else ("ids",)
        return cls(reads=reads, causal=spec.backbone.attention == "causal")
