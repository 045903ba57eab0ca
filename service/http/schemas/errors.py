"""The one body of every error, and an example of it for every status."""

from __future__ import annotations

from typing import Any

from service.http.schemas.base import REQUEST_ID, Answer

MEANING = {
    400: "The body cannot be read, or is not declared as JSON.",
    401: "No key, or one that is not known.",
    403: "A key that does not open this, a host that is not ours, or a page from elsewhere.",
    404: "What is named does not exist.",
    409: "Not possible for this artifact, or against what is stored.",
    412: "The item has another version than If-Match or If-None-Match expects.",
    413: "The body is too large, or history and candidates take more positions than a batch or the queue holds.",
    415: "The body is in an encoding or a character set that is not read.",
    422: "A field is wrong, or nothing usable is left of the history.",
    429: "The queue is full, or this key sends too fast; see Retry-After.",
    500: "The model failed on this request.",
    503: "Not ready, or the store is away.",
    504: "Not answered within the deadline.",
}


class ErrorDetail(Answer):
    """`code` is stable and meant for programs; `message` says what was given and what is allowed."""

    code: str
    message: str
    request_id: str
    field: str | None = None


class ErrorAnswer(Answer):
    """The one shape of every error."""

    error: ErrorDetail


ERRORS: dict[int, tuple[str, str, str | None]] = {
    400: ("not_json", "the body is not JSON: EOF while parsing an object at line 1 column 1", None),
    401: ("unauthorized", "no key was sent; send an API key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'", None),
    403: ("forbidden", "this is an API key; artifacts, traffic and items are changed with an admin key", None),
    404: ("unknown_artifact", "there is no artifact 'other'; loaded are 'anyo-demo-tiny'", "artifact"),
    409: ("cannot_read_text", "history holds the free title 'A new thing', and artifact 'ids-only' reads ids only",
          "history"),
    412: ("precondition_failed", "item 'd-017' has version 3, and If-Match expects 2; read it again", None),
    413: ("too_large", "the body is larger than 1048576 bytes (ANYO_MAX_BODY_BYTES)", None),
    415: ("unsupported_media", "the body's charset is 'utf-16'; send JSON in UTF-8",
          None),
    422: ("invalid_input", "k: Input should be less than or equal to 1000; given: 5000", "k"),
    429: ("overloaded", "the queue is full (65530 of 65536 positions are queued)", None),
    500: ("internal_error", "an error in the service; its log has the request_id", None),
    503: ("not_ready", "the service is shutting down", None),
    504: ("deadline_exceeded", "the request was not answered within its deadline", None),
}  # fmt: skip


def error_example(status: int) -> dict[str, Any]:
    """Return the example of an error's body."""
    code, message, field = ERRORS[status]
    named = {} if field is None else {"field": field}
    return {"error": {"code": code, "message": message, "request_id": REQUEST_ID, **named}}
