"""The errors of the service's core: one tree, and a message that says what was given and what is allowed.

AnyoError
  UnknownName           an item, artifact, user or path that does not exist
  Conflict              the request is well-formed and this artifact or this user's record cannot serve it
  TooLarge              a request beyond one of its limits
  InvalidInput          a field is wrong
    NothingUsable       no item of the history is in the catalog, and no user_id is given
  PreconditionFailed    an item has another version than the request expects
  Overloaded            the queue is full; carries when to come back
  ModelError            the model failed on this very request
  NotReady              loading, draining or broken; carries the reason
  StoreUnavailable      the store of histories did not answer
  IndexUnavailable      the engine that finds items did not answer
  DeadlineExceeded      the request took longer than it may

Which HTTP status each is answered with, and the errors that only HTTP has, are in `service/http/errors.py`.
"""

from __future__ import annotations

from itertools import islice

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
    """Base of all: a stable code for programs, a sentence for people, at times the field of the request."""

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


class UnknownName(AnyoError):
    """The request names something that does not exist."""

    code = "not_found"


class Conflict(AnyoError):
    """The request is right in itself, but not for this artifact or against what is stored."""

    code = "conflict"


class PreconditionFailed(AnyoError):
    """The stored state differs from the one that the request expects."""

    code = "precondition_failed"


class TooLarge(AnyoError):
    """A request is beyond one of its limits."""

    code = "too_large"


class InvalidInput(AnyoError):
    """A field of the request is wrong."""

    code = "invalid_input"


class NothingUsable(InvalidInput):
    """Nothing is left of the history, and there is no user to fall back on."""

    code = "no_usable_history"


class Overloaded(AnyoError):
    """The queue is full: come back in `retry_after` seconds."""

    code = "overloaded"


class ModelError(AnyoError):
    """The model failed on this request when it was computed alone."""

    code = "model_error"


class NotReady(AnyoError):
    """The service is loading, draining or broken; the message says which."""

    code = "not_ready"


class StoreUnavailable(AnyoError):
    """The store of histories failed or did not answer in time."""

    code = "store_unavailable"


class IndexUnavailable(AnyoError):
    """The engine that finds items did not answer, and nothing else is to."""

    code = "index_unavailable"


class DeadlineExceeded(AnyoError):
    """The request took longer than `deadline_ms`."""

    code = "deadline_exceeded"


class StartError(Exception):
    """The service cannot start; the message is one sentence for whoever started it."""
