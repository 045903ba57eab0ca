"""Every error the service answers with: one tree, one shape, a message that says what was given and what is
allowed.

AnyoError
  BadRequest 400        the body is not JSON, or not declared as JSON
  Unauthorized 401      no API key, or one that is not known
  Forbidden 403         a key that does not open this, or an admin endpoint that is closed
  UnknownName 404       an item, artifact, user or path that does not exist
  NotAllowed 405        a path that exists, with another method
  Conflict 409          the request is well-formed and this artifact or this user's record cannot serve it
  TooLarge 413          a body or a history beyond its limit
  UnsupportedMedia 415  a body in an encoding or a character set that is not read
  InvalidInput 422      a field is wrong
    NothingUsable       no item of the history is in the catalog, and no user_id is given
  Overloaded 429        the queue is full; carries Retry-After
    RateLimited         this key has sent more than it may; carries Retry-After
  ClientGone 499        nobody is listening any more; seen only in metrics
  ModelError 500        the model failed on this very request
  NotReady 503          loading, draining or broken; carries the reason
  StoreUnavailable 503  the store of histories did not answer
  DeadlineExceeded 504  the request took longer than it may
"""

from __future__ import annotations

from itertools import islice

import orjson

# For errors that arise below our own code (unknown path, wrong method, a status raised by the framework).
CODE_OF_STATUS = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media",
    422: "invalid_input",
    429: "overloaded",
    500: "internal_error",
    503: "not_ready",
    504: "deadline_exceeded",
}


MAX_MESSAGE = 2000  # characters; a net, as messages shorten what they repeat themselves
SHOWN = 80  # characters of what was given, in messages
FEW, DEEP = 30, 3  # entries, and levels, of what was given that can matter for so many characters


def shortened(text: str, limit: int = SHOWN) -> str:
    """Return a text that is no longer than `limit` characters, and an ellipsis where it was cut."""
    return text if len(text) <= limit else text[:limit] + "…"


def shown(given: object) -> str:
    """Return what was given as messages repeat it: short, and at no cost that depends on its size."""
    return shortened(repr(_beginning(given)))


def _beginning(given: object, depth: int = 0) -> object:
    if isinstance(given, str):
        return given[: SHOWN + 1]
    if isinstance(given, dict | list):
        few = list(islice(given, FEW if depth < DEEP else 0))
        if isinstance(given, dict):
            return {_beginning(name): _beginning(given[name], depth + 1) for name in few}
        return [_beginning(each, depth + 1) for each in few]
    if isinstance(given, int) and not isinstance(given, bool) and given.bit_length() > 4 * SHOWN:
        return float("inf") if given > 0 else float("-inf")
    return given


class AnyoError(Exception):
    """Base of all: an HTTP status, a stable code for programs, a sentence for people, at times the field."""

    status = 500
    code = "internal_error"

    def __init__(
        self, message: str, *, field: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        message = shortened(message, MAX_MESSAGE)
        super().__init__(message)
        self.message = message
        self.field = None if field is None else shortened(field, SHOWN)
        self.code = code or self.code
        self.retry_after = retry_after


class BadRequest(AnyoError):
    """The request cannot be read at all."""

    status = 400
    code = "bad_request"


class Unauthorized(AnyoError):
    """No key was sent where one is needed, or one that is not known."""

    status = 401
    code = "unauthorized"


class Forbidden(AnyoError):
    """The key is known and does not open this endpoint, or nothing opens it."""

    status = 403
    code = "forbidden"


class UnknownName(AnyoError):
    """What the request names does not exist."""

    status = 404
    code = "not_found"


class NotAllowed(AnyoError):
    """The path exists, this method on it does not."""

    status = 405
    code = "method_not_allowed"


class Conflict(AnyoError):
    """The request is right in itself, but not for this artifact or against what is stored."""

    status = 409
    code = "conflict"


class TooLarge(AnyoError):
    """A body or a history is beyond its limit."""

    status = 413
    code = "too_large"


class UnsupportedMedia(AnyoError):
    """A body is in an encoding or a character set that is not read here."""

    status = 415
    code = "unsupported_media"


class InvalidInput(AnyoError):
    """A field of the request is wrong."""

    status = 422
    code = "invalid_input"


class NothingUsable(InvalidInput):
    """Nothing is left of the history, and there is no user to fall back on."""

    code = "no_usable_history"


class Overloaded(AnyoError):
    """The queue is full: come back in `retry_after` seconds."""

    status = 429
    code = "overloaded"


class RateLimited(Overloaded):
    """This key has sent more requests than it may: come back in `retry_after` seconds."""

    code = "rate_limited"


class ClientGone(AnyoError):
    """The client closed its connection; the status exists for the metrics only."""

    status = 499
    code = "client_gone"


class ModelError(AnyoError):
    """The model failed on this request when it was computed alone."""

    status = 500
    code = "model_error"


class NotReady(AnyoError):
    """The service is loading, draining or broken; the message says which."""

    status = 503
    code = "not_ready"


class StoreUnavailable(AnyoError):
    """The store of histories failed or did not answer in time."""

    status = 503
    code = "store_unavailable"


class DeadlineExceeded(AnyoError):
    """The request took longer than `deadline_ms`."""

    status = 504
    code = "deadline_exceeded"


class StartError(Exception):
    """The service cannot start; the message is one sentence for whoever started it."""


def unforeseen() -> AnyoError:
    """Return what a client is told of an error that nobody foresaw; the log has the rest."""
    return AnyoError("an error in the service; its log has the request_id")


def error_headers(error: AnyoError) -> list[tuple[bytes, bytes]]:
    """Return the headers that an error brings with it."""
    headers = []
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status == 415:
        headers.append((b"accept-encoding", b"gzip"))
    return headers


def error_body(code: str, message: str, request_id: str, field: str | None = None) -> bytes:
    """Return the one JSON shape of every error, as bytes."""
    error = {"code": code, "message": message, "request_id": request_id}
    if field is not None:
        error["field"] = field
    return orjson.dumps({"error": error})
