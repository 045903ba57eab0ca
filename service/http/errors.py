"""Errors as HTTP answers them: each error's status, the errors that only HTTP has, and their one shape.

HttpError
  BadRequest 400        the body is not JSON, or not declared as JSON
  Unauthorized 401      no API key, or one that is not known
  Forbidden 403         a key that does not open this, or an admin endpoint that is closed
  NotAllowed 405        a path that exists, with another method
  UnsupportedMedia 415  a body in an encoding or a character set that is not read
  ClientGone 499        the client closed the connection; seen only in metrics
RateLimited 429         an Overloaded: this key has sent more than it may
"""

from __future__ import annotations

import orjson

from service.errors import (
    AnyoError,
    Conflict,
    DeadlineExceeded,
    IndexUnavailable,
    InvalidInput,
    ModelError,
    NotReady,
    Overloaded,
    PreconditionFailed,
    StoreUnavailable,
    TooLarge,
    UnknownName,
)

STATUS: dict[type[AnyoError], int] = {
    UnknownName: 404,
    Conflict: 409,
    PreconditionFailed: 412,
    TooLarge: 413,
    InvalidInput: 422,
    Overloaded: 429,
    ModelError: 500,
    NotReady: 503,
    StoreUnavailable: 503,
    IndexUnavailable: 503,
    DeadlineExceeded: 504,
    AnyoError: 500,
}
"""The status of each error of the core; a subclass has that of its base."""

# For errors that arise below our own code (unknown path, wrong method, a status raised by the framework).
CODE_OF_STATUS = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    412: "precondition_failed",
    413: "too_large",
    415: "unsupported_media",
    422: "invalid_input",
    429: "overloaded",
    500: "internal_error",
    503: "not_ready",
    504: "deadline_exceeded",
}


class HttpError(AnyoError):
    """An error that only HTTP has; it carries its status."""

    status = 500


class BadRequest(HttpError):
    """The request cannot be read at all."""

    status = 400
    code = "bad_request"


class Unauthorized(HttpError):
    """No key was sent where one is needed, or one that is not known."""

    status = 401
    code = "unauthorized"


class Forbidden(HttpError):
    """The key is known and does not open this endpoint, or nothing opens it."""

    status = 403
    code = "forbidden"


class NotAllowed(HttpError):
    """The path exists, this method on it does not."""

    status = 405
    code = "method_not_allowed"


class UnsupportedMedia(HttpError):
    """A body is in an encoding or a character set that is not read here."""

    status = 415
    code = "unsupported_media"


class RateLimited(Overloaded):
    """This key has sent more requests than it may: come back in `retry_after` seconds."""

    code = "rate_limited"


class ClientGone(HttpError):
    """The client closed its connection; the status exists for the metrics only."""

    status = 499
    code = "client_gone"


def status_of(error: AnyoError) -> int:
    """Return the HTTP status that an error is answered with."""
    if isinstance(error, HttpError):
        return error.status
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def unforeseen() -> AnyoError:
    """Return what a client is told of an unforeseen error; the log has the rest."""
    return AnyoError("an error in the service; its log has the request_id")


def error_headers(error: AnyoError) -> list[tuple[bytes, bytes]]:
    """Return the headers that an error brings with it."""
    headers = []
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    status = status_of(error)
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 415:
        headers.append((b"accept-encoding", b"gzip"))
    return headers


def error_of(code: str, message: str, request_id: str, field: str | None = None) -> dict[str, str]:
    """Return the one shape of every error."""
    named = {} if field is None else {"field": field}
    return {"code": code, "message": message, "request_id": request_id, **named}


def error_body(code: str, message: str, request_id: str, field: str | None = None) -> bytes:
    """Return an error in its one shape as a JSON body."""
    return orjson.dumps({"error": error_of(code, message, request_id, field)})
