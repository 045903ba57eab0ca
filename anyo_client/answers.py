"""Answers of the service. Fields that a newer service adds are passed over."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ArtifactName(_Answer):
    """Which artifact answered."""

    name: str
    version: str
    recipe: str


class RecommendedItem(_Answer):
    """An item of an answer; `score` orders this answer. A free title among candidates has no id.

    `categories` and `attributes` are those that `fields` of the request asked for; None where it did not.
    """

    rank: int
    item_id: str | None
    title: str
    score: float
    categories: list[str] | None = None
    attributes: dict[str, str | float | bool | list[str]] | None = None


class ExplainedItem(_Answer):
    """An item of the history as the model reads it; a free title has no id."""

    item_id: str | None
    title: str


class Influence(_Answer):
    """For each recommended item: its score minus the one without each item of the history. None: a history of one."""

    method: str
    values: list[list[float]] | None


class NearestItem(_Answer):
    """A place in the history, from 0, and the cosine of the two item vectors."""

    place: int
    cosine: float


class Nearest(_Answer):
    """For each recommended item, the item of the history with the most similar vector."""

    method: str
    values: list[NearestItem | None]


class ExplainingSentence(_Answer):
    """One sentence about the first item, which names it and items of the history (`named`, places in it). Without a
    sentence `text` is None, and `reason` says why."""

    method: str
    artifact: ArtifactName | None
    item_id: str | None
    text: str | None
    named: list[int]
    reason: str | None


class Explanation(_Answer):
    """Why items are in the answer; lists are in the order of `items`."""

    artifact: ArtifactName
    history: list[ExplainedItem]
    influence: Influence
    nearest: Nearest
    sentence: ExplainingSentence | None = None


class _RankedAnswer(_Answer):
    """Fields of every answer with a ranked list. `timings_ms`: milliseconds in the service by stage, and `total`."""

    request_id: str
    items: list[RecommendedItem]
    artifact: ArtifactName
    timings_ms: dict[str, float]
    source: Literal["model", "cache", "popular"]


class Recommendation(_RankedAnswer):
    """Recommended items, best first."""

    ignored_items: list[str]
    degraded: list[str]
    explanation: Explanation | None = None


class GeneratedText(_Answer):
    """A text that was written, the item it stands for (None: no item), and how far the grounding went."""

    text: str
    code: list[int] | None
    item_id: str | None
    distance: float | None
    valid: bool


class TokenCounts(_Answer):
    """Positions read, and tokens written by all beams together."""

    prompt: int
    new: int


class WrittenRecommendation(Recommendation):
    """A recommendation by a generative artifact; no text reached the last `filled` items."""

    generated: list[GeneratedText]
    tokens: TokenCounts
    beams: int
    filled: int


class Step(_Answer):
    """The best text so far, after `step` steps."""

    step: int
    text: str


class Ranking(_RankedAnswer):
    """Given candidates, best first."""

    unknown_candidates: list[str]


class Similar(_Answer):
    """The items whose vectors are closest to that of `item_id`, closest first."""

    item_id: str
    items: list[RecommendedItem]


class Item(_Answer):
    """An item of the catalog; `popularity` counts its training interactions."""

    item_id: str
    title: str
    categories: list[str]
    popularity: int


class SearchPage(_Answer):
    """Items found, the most popular first, and the offset of the next page (None: that was the last)."""

    items: list[Item]
    next: int | None


class Event(_Answer):
    """An item that a user took, at `timestamp` (Unix seconds)."""

    item_id: str
    timestamp: float


class User(_Answer):
    """A user's stored history, oldest first."""

    user_id: str
    events: list[Event]


class Appended(_Answer):
    """Numbers of events: newly stored, duplicates, and stored in total."""

    stored: int
    duplicates: int
    total: int


class Feedback(_Answer):
    """Whether the item had been recommended by that answer, and at which rank."""

    hit: bool
    rank: int | None


class Artifact(_Answer):
    """A loaded artifact; `training` and `metrics` are its manifest's, empty in the list of all."""

    name: str
    version: str
    recipe: str
    kind: Literal["dense", "generative"]
    default: bool
    items: int
    reads: list[str]
    history_limit: int
    examples: list[list[str]]
    data: str | None = None
    backbone: str | None = None
    metrics: dict[str, float] = {}
    training: dict[str, Any] = {}


class Artifacts(_Answer):
    """All loaded artifacts, the default one first."""

    items: list[Artifact]
