"""Bodies of feedback."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from service.http.schemas.base import MAX_ID, REQUEST_ID, Answer, Body
from service.http.schemas.recommend import ArtifactName


class FeedbackRequest(Body):
    """An item of an answer was taken."""

    request_id: str = Field(
        min_length=1, max_length=128, description="The `request_id` of the answer (also its X-Request-ID)."
    )
    item_id: str = Field(min_length=1, max_length=MAX_ID, description="What was taken, whether recommended or not.")

    example: ClassVar[dict[str, Any]] = {"request_id": REQUEST_ID, "item_id": "d-240"}


class FeedbackAnswer(Answer):
    """A report joined with its answer; `rank` is null where the item was not recommended."""

    request_id: str
    item_id: str
    artifact: ArtifactName
    hit: bool
    rank: int | None
    duplicate: bool

    example: ClassVar[dict[str, Any]] = {
        "request_id": REQUEST_ID,
        "item_id": "d-240",
        "artifact": {"name": "anyo-demo-tiny", "version": "3f9a2c51d0be", "recipe": "anyo"},
        "hit": True,
        "rank": 2,
        "duplicate": False,
    }


class Rate(Answer):
    """A rate or a difference of rates, with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


class Differences(Answer):
    """Rates of a version minus those of the baseline."""

    hit_rate: Rate | None
    taken_rate: Rate | None


class FeedbackRow(Answer):
    """One version of an artifact: `hit_rate` is hits / rated, `taken_rate` hits / answers."""

    name: str
    version: str
    recipe: str
    answers: int
    rated: int
    hits: int
    hit_rate: Rate | None
    taken_rate: Rate | None
    minus_baseline: Differences | None


class Version(Answer):
    """A version of an artifact."""

    name: str
    version: str


class FeedbackSummary(Answer):
    """All versions that answered, and how they differ from the baseline."""

    baseline: Version | None
    items: list[FeedbackRow]
    next: int | None

    example: ClassVar[dict[str, Any]] = {
        "baseline": {"name": "anyo-demo-tiny", "version": "3f9a2c51d0be"},
        "items": [
            {
                "name": "anyo-demo-minilm",
                "version": "8c1d02fa77be",
                "recipe": "anyo",
                "answers": 2000,
                "rated": 120,
                "hits": 96,
                "hit_rate": {"value": 0.8, "low": 0.72, "high": 0.862},
                "taken_rate": {"value": 0.048, "low": 0.0395, "high": 0.0583},
                "minus_baseline": {"hit_rate": {"value": 0.05, "low": -0.04, "high": 0.13}, "taken_rate": None},
            }
        ],
        "next": None,
    }
