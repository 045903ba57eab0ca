"""Requests as data, the same for both clients: what is sent, and what the answer is read as."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from anyo_client import answers
from anyo_client.errors import AnyoError, NotReachedError

A = TypeVar("A", bound=BaseModel)
History = Sequence[str | Mapping[str, str]]
"""Item ids and free titles, ``{"title": …}``, oldest first."""


@dataclass(frozen=True)
class Call(Generic[A]):
    """A request and the type of its answer."""

    method: str
    path: str
    answer: type[A]
    body: dict[str, Any] | None = None
    query: dict[str, Any] = field(default_factory=dict)

    def request(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request; what changes something declares JSON, also without a body."""
        headers = {} if self.method == "GET" else {"content-type": "application/json"}
        content = None if self.body is None else json.dumps(self.body).encode()
        return client.build_request(self.method, self.path, content=content, params=self.query, headers=headers)

    def read(self, response: httpx.Response) -> A:
        """The answer.

        Raises:
            AnyoError: the status says that there is none.
        """
        if response.is_error:
            raise refusal(response)
        return self.answer.model_validate_json(response.content)


def refusal(response: httpx.Response) -> AnyoError:
    """What a response that is no answer says; its body has been read."""
    retry_after = response.headers.get("retry-after", "")
    told = float(retry_after) if retry_after.isdecimal() else None
    try:
        error = json.loads(response.content)["error"]
        message, known = error["message"], {name: error.get(name) for name in ("code", "request_id", "field")}
    except (ValueError, LookupError, TypeError):  # a balancer in front of the service has a form of its own
        message, known = f"status {response.status_code} without anyo's description of the error", {}
    return AnyoError(message, status=response.status_code, retry_after=told, **known)


def not_reached(error: httpx.TransportError) -> NotReachedError:
    """The same in our words."""
    return NotReachedError(f"no answer: {type(error).__name__}{f': {error}' if str(error) else ''}")


class Events:
    """Reads the lines of server-sent events; each whole event is a step or the answer."""

    def __init__(self) -> None:
        self._kind = ""

    def line(self, line: str) -> answers.Step | answers.WrittenRecommendation | None:
        """Take a line; returns what it ends. Raises AnyoError where the service says that it failed."""
        name, _, value = line.partition(": ")
        if name == "event":
            self._kind = value
        if name != "data":
            return None
        if self._kind == "step":
            return answers.Step.model_validate_json(value)
        if self._kind == "answer":
            return answers.WrittenRecommendation.model_validate_json(value)
        error = json.loads(value)["error"]
        known = {name: error.get(name) for name in ("code", "request_id", "field")}
        raise AnyoError(error["message"], status=200, **known)


def recommend(history: History, **given: Any) -> Call[answers.Recommendation]:
    """`POST /recommend`."""
    return Call("POST", "/recommend", answers.Recommendation, _asked(history, given))


def generate(history: History, **given: Any) -> Call[answers.WrittenRecommendation]:
    """`POST /recommend/generative`."""
    return Call("POST", "/recommend/generative", answers.WrittenRecommendation, _asked(history, given))


def rank(history: History, candidates: History, **given: Any) -> Call[answers.Ranking]:
    """`POST /rank`."""
    return Call("POST", "/rank", answers.Ranking, _asked(history, {"candidates": list(candidates), **given}))


def similar(item_id: str, k: int, artifact: str | None) -> Call[answers.Similar]:
    """`GET /items/{item_id}/similar`."""
    return Call("GET", f"/items/{_part(item_id)}/similar", answers.Similar, query=_said(k=k, artifact=artifact))


def item(item_id: str, artifact: str | None) -> Call[answers.Item]:
    """`GET /items/{item_id}`."""
    return Call("GET", f"/items/{_part(item_id)}", answers.Item, query=_said(artifact=artifact))


def search(words: str, limit: int, offset: int, artifact: str | None) -> Call[answers.SearchPage]:
    """`GET /items`."""
    query = _said(query=words, limit=limit, offset=offset, artifact=artifact)
    return Call("GET", "/items", answers.SearchPage, query=query)


def append(user_id: str, items: Sequence[str]) -> Call[answers.Appended]:
    """`POST /users/{user_id}/events`. Each event gets an id, so that the request can be sent again."""
    one = uuid.uuid4().hex
    events = [{"item_id": item_id, "event_id": f"{one}-{place}"} for place, item_id in enumerate(items)]
    return Call("POST", f"/users/{_part(user_id)}/events", answers.Appended, {"events": events})


def user(user_id: str) -> Call[answers.User]:
    """`GET /users/{user_id}`."""
    return Call("GET", f"/users/{_part(user_id)}", answers.User)


def taken(request_id: str, item_id: str) -> Call[answers.Feedback]:
    """`POST /feedback`."""
    return Call("POST", "/feedback", answers.Feedback, {"request_id": request_id, "item_id": item_id})


def artifacts() -> Call[answers.Artifacts]:
    """`GET /artifacts`."""
    return Call("GET", "/artifacts", answers.Artifacts)


def artifact(name: str) -> Call[answers.Artifact]:
    """`GET /artifacts/{name}`."""
    return Call("GET", f"/artifacts/{_part(name)}", answers.Artifact)


def _asked(history: History, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"history": [each if isinstance(each, str) else dict(each) for each in history], **_said(**given)}


def _said(**given: Any) -> dict[str, Any]:
    """What was given; None leaves the choice to the service."""
    return {name: value for name, value in given.items() if value is not None}


def _part(name: str) -> str:
    return quote(name, safe="")
