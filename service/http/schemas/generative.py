"""Bodies of `POST /recommend/generative` and `POST /compare`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from service.http.schemas.base import MAX_ID, REQUEST_ID, Answer
from service.http.schemas.recommend import RankedAnswer, RankedItem, RecommendAnswer, RecommendRequest, plain_history
from service.recommend.requests import GenerativeQuery

MAX_BEAMS = 1024
MAX_NEW_TOKENS = 4096


def boolean(value: Any) -> Any:
    """Refuse 0, which equals False and is no JSON boolean."""
    if not isinstance(value, bool):
        raise ValueError("must be a boolean")
    return value


class GenerativeRequest(RecommendRequest):
    """Request for generated recommendations: history or user, artifact or recipe, and decoding settings."""

    artifact: str | None = Field(
        default=None, description="Name of a loaded generative artifact; null takes the default one, or `recipe`'s."
    )
    rerank: None = Field(default=None, description="For POST /recommend: only null is allowed here.")
    explain: Annotated[Literal[False], BeforeValidator(boolean)] = Field(
        default=False, description="For POST /recommend: only false is allowed here."
    )
    diversity: None = Field(default=None, description="For POST /recommend: only null is allowed here.")
    recipe: str | None = Field(
        default=None, min_length=1, max_length=MAX_ID, description="A generative recipe of which an artifact is loaded."
    )
    beams: int | None = Field(
        default=None,
        ge=1,
        le=MAX_BEAMS,
        description="Texts that are searched side by side; null takes what the artifact was evaluated with.",
    )
    max_new_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_NEW_TOKENS,
        description="Longest text in tokens; null takes what the artifact was evaluated with.",
    )

    def query(self) -> GenerativeQuery:
        """Return what a recommender is asked, of either kind."""
        return GenerativeQuery(
            plain_history(self.history), self.user_id, self.k, self.exclude_seen, self.exclude, self.categories,
            None if self.filter is None else self.filter.plain(), self.beams, self.max_new_tokens,
        )  # fmt: skip

    example: ClassVar[dict[str, Any]] = {"history": ["d-004", "d-211", "d-017"], "k": 3, "recipe": "genre", "beams": 4}


class CompareRequest(GenerativeRequest):
    """One history for both ways; `artifact` is the dense one."""

    artifact: str | None = Field(default=None, description="Name of a dense artifact; null takes the default one.")
    generative_artifact: str | None = Field(
        default=None, description="Name of a generative artifact; null takes the default one, or `recipe`'s."
    )

    example: ClassVar[dict[str, Any]] = {"history": ["d-004", "d-211", "d-017"], "k": 3}


class GeneratedText(Answer):
    """A text that was written, best first, and the item that it stands for.

    `code` is the path of a semantic ID, `distance` how far the grounding had to go (0: named as written), `valid`
    whether the text as written is an item.
    """

    text: str
    code: list[int] | None
    item_id: str | None
    distance: float | None
    valid: bool


class TokenCounts(Answer):
    """Positions read and tokens written, those of all beams together."""

    prompt: int
    new: int


class GenerativeAnswer(RankedAnswer):
    """Recommended items, best first, and the generated texts; the last `filled` items were not generated."""

    items: list[RankedItem]
    source: Literal["model", "popular"]
    generated: list[GeneratedText]
    tokens: TokenCounts
    beams: int
    filled: int

    example: ClassVar[dict[str, Any]] = {
        "request_id": REQUEST_ID,
        "items": [
            {"rank": 1, "item_id": "d-018", "title": "The Lighthouse at Cape Wrath", "score": -0.41},
            {"rank": 2, "item_id": "d-240", "title": "Fog over the Harbour", "score": -0.77},
        ],
        "artifact": {"name": "genre-demo", "version": "b41c09d7aa52", "recipe": "genre"},
        "timings_ms": {
            "assemble": 0.2,
            "queue": 0.3,
            "prefill": 9.1,
            "decode": 81.5,
            "ground": 0.1,
            "search": 0.1,
            "total": 92.4,
        },
        "source": "model",
        "ignored_items": [],
        "degraded": [],
        "generated": [
            {"text": "The Lighthouse at Cape Wrath", "code": None, "item_id": "d-018", "distance": 0.0, "valid": True},
            {"text": "Fog over the Harbour", "code": None, "item_id": "d-240", "distance": 0.0, "valid": True},
        ],
        "tokens": {"prompt": 64, "new": 36},
        "beams": 4,
        "filled": 0,
    }


class CompareAnswer(Answer):
    """Both answers to one history, computed one after the other, without caches.

    `ratio` is the generative total over the dense one, `overlap` the share of items that both hold.
    """

    request_id: str
    dense: RecommendAnswer
    generative: GenerativeAnswer
    ratio: float | None
    overlap: float

    example: ClassVar[dict[str, Any]] = {
        "request_id": RecommendAnswer.example["request_id"],
        "dense": RecommendAnswer.example,
        "generative": GenerativeAnswer.example,
        "ratio": 12.66,
        "overlap": 1.0,
    }
