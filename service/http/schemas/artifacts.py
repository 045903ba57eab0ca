"""Bodies of artifacts and traffic."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from modeling.artifact.part_names import Part
from service.http.schemas.base import Answer, Body

MAX_SPLIT = 16


class TrafficRequest(Body):
    """Which artifacts answer requests that name none."""

    weights: dict[str, Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]] = Field(
        default_factory=dict,
        max_length=MAX_SPLIT,
        description="Share of each artifact, in any unit; empty: the default artifact answers all.",
    )
    shadow: str | None = Field(
        default=None, description="An artifact that answers every request again, silently, to be compared."
    )

    @field_validator("weights")
    @classmethod
    def _something_answers(cls, weights: dict[str, float]) -> dict[str, float]:
        if weights and not any(weights.values()):
            raise ValueError("all weights are 0, so nothing would answer; give one a weight above 0")
        return weights

    example: ClassVar[dict[str, Any]] = {"weights": {"anyo-demo-tiny": 0.9, "anyo-demo-minilm": 0.1}, "shadow": None}


class SharedPart(Answer):
    """Parts of one kind that an artifact has in common with others, which hold them in memory too."""

    part: Part
    bytes: int
    artifacts: list[str]


class WritingSettings(Answer):
    """Beams and the longest text in tokens."""

    beams: int
    max_new_tokens: int


class WritingRange(Answer):
    """Decoding settings of a generative artifact: defaults, and the largest values that a request may set."""

    default: WritingSettings
    limit: WritingSettings


class ArtifactRow(Answer):
    """A loaded artifact, what it can do, what it takes, and histories to try it with.

    `kind` says which endpoint it answers; there is a default artifact of each kind. `own_bytes` is what unloading it
    would give back. `attributes` are what a `filter` can ask for beside `categories`. `dim` is null and `writes` set
    for a generative one.
    """

    name: str
    version: str
    recipe: str
    kind: Literal["dense", "generative"]
    default: bool
    state: Literal["active", "standby"]
    bytes: int
    own_bytes: int
    shares: list[SharedPart]
    reads: list[str]
    items: int
    dim: int | None
    writes: WritingRange | None
    ranks: bool
    history_limit: int
    categories: list[str]
    attributes: list[str]
    examples: list[list[str]]


class Working(Answer):
    """A running operation on an artifact, and how long it has taken."""

    name: str
    step: str
    seconds: float


class ArtifactList(Answer):
    """The loaded artifacts, the default one first; `bytes` counts shared parts once, `bytes_limit` 0 means none."""

    items: list[ArtifactRow]
    next: int | None
    working: Working | None
    bytes: int
    bytes_limit: int

    example: ClassVar[dict[str, Any]] = {
        "items": [
            {
                "name": "anyo-demo-tiny",
                "version": "3f9a2c51d0be",
                "recipe": "anyo",
                "kind": "dense",
                "default": True,
                "state": "active",
                "bytes": 41_500_000,
                "own_bytes": 29_100_000,
                "shares": [{"part": "catalog", "bytes": 2_400_000, "artifacts": ["anyo-demo-minilm"]}],
                "reads": ["ids", "text"],
                "items": 2000,
                "dim": 128,
                "writes": None,
                "ranks": True,
                "history_limit": 50,
                "categories": ["mystery", "travel"],
                "attributes": ["brand", "price"],
                "examples": [["d-004", "d-211", "d-017"]],
            }
        ],
        "next": None,
        "working": {"name": "anyo-demo-minilm", "step": "checking and warming up anyo-demo-minilm", "seconds": 3.2},
        "bytes": 41_500_000,
        "bytes_limit": 0,
    }


class ArtifactDetail(ArtifactRow):
    """A loaded artifact, and how it came about; null and empty where its manifest does not say."""

    data: str | None = Field(description="The data set it was trained on.")
    split: str | None = Field(description="How interactions were divided into train, validation and test.")
    fitted_on: str | None = Field(description="`train`, or `train+validation` after a refit.")
    backbone: str | None = Field(description="The language model it was made from; null without one.")
    metrics: dict[str, float] = Field(description="Quality on the validation split, by the metric's name.")
    training: dict[str, Any] = Field(description="The run: epochs, best epoch, steps, seconds, what stopped it, seed.")

    example: ClassVar[dict[str, Any]] = {
        **ArtifactList.example["items"][0],
        "data": "demo",
        "split": "leave-one-out",
        "fitted_on": "train",
        "backbone": "tiny",
        "metrics": {"validation_recall@10": 0.515, "validation_ndcg@10": 0.2779},
        "training": {"epochs": 12.0, "best_epoch": 12.0, "steps": 396, "seconds": 126.4, "stopped_by": "epochs"},
    }


class LoadAnswer(Answer):
    """A load; `changed` is false where this version was loaded already."""

    name: str
    version: str
    changed: bool
    bytes: int

    example: ClassVar[dict[str, Any]] = {
        "name": "anyo-demo-minilm",
        "version": "8c1d02fa77be",
        "changed": True,
        "bytes": 130_000_000,
    }


class UnloadAnswer(Answer):
    """An unload; `freed_bytes` is what no other artifact uses."""

    name: str
    freed_bytes: int
    bytes: int

    example: ClassVar[dict[str, Any]] = {"name": "anyo-demo-minilm", "freed_bytes": 88_500_000, "bytes": 41_500_000}


class ActivateAnswer(Answer):
    """Which artifact is the default one of its kind from now on, and which was (null: none)."""

    name: str
    version: str
    previous: str | None

    example: ClassVar[dict[str, Any]] = {
        "name": "anyo-demo-minilm",
        "version": "8c1d02fa77be",
        "previous": "anyo-demo-tiny",
    }


class ShadowState(Answer):
    """Comparison of shadow answers with served answers: means over the compared requests (null: none yet)."""

    artifact: str
    compared: int
    dropped: int
    failed: int
    overlap: float | None
    served_ms: float | None
    shadow_ms: float | None


class TrafficAnswer(Answer):
    """Which artifact answers requests that name none: by weight or, without weights, the default one."""

    default: str
    weights: dict[str, float]
    shadow: ShadowState | None

    example: ClassVar[dict[str, Any]] = {
        "default": "anyo-demo-tiny",
        "weights": {},
        "shadow": {
            "artifact": "anyo-demo-minilm",
            "compared": 1000,
            "dropped": 12,
            "failed": 0,
            "overlap": 0.62,
            "served_ms": 7.4,
            "shadow_ms": 21.9,
        },
    }
