"""Bodies of `POST /recommend/batch`: many requests in, a result for each of them out."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import FailFast, Field, model_validator

from service.http.schemas.base import REQUEST_ID, Answer, Body
from service.http.schemas.errors import ErrorAnswer, error_example
from service.http.schemas.recommend import RecommendAnswer, RecommendRequest

MAX_REQUESTS = 1000
MAX_ITEMS = 20_000


class BatchRequest(Body):
    """Requests as `POST /recommend` takes them."""

    requests: Annotated[list[RecommendRequest], FailFast()] = Field(
        min_length=1,
        max_length=MAX_REQUESTS,
        description="Bodies of POST /recommend, one for each user; their `k` add up to at most "
        f"{MAX_ITEMS}. A body that is malformed refuses the batch.",
    )

    @model_validator(mode="after")
    def _bounded(self) -> BatchRequest:
        total = sum(request.k for request in self.requests)
        if total > MAX_ITEMS:
            raise ValueError(f"the k of all requests add up to {total}, and at most {MAX_ITEMS} are allowed")
        return self

    example: ClassVar[dict[str, Any]] = {
        "requests": [{"user_id": "anna", "k": 3}, {"history": ["d-004", "d-211", "d-017"], "k": 3}]
    }


class BatchAnswer(Answer):
    """One result for each request, in their order: the answer of `POST /recommend`, or the error."""

    request_id: str
    results: list[RecommendAnswer | ErrorAnswer]
    timings_ms: dict[str, float]

    example: ClassVar[dict[str, Any]] = {
        "request_id": REQUEST_ID,
        "results": [
            {**RecommendAnswer.example, "request_id": f"{REQUEST_ID}.0"},
            {"error": {**error_example(422)["error"], "request_id": f"{REQUEST_ID}.1"}},
        ],
        "timings_ms": {"total": 12.6},
    }
