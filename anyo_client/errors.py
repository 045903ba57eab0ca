"""Errors of a call."""

from __future__ import annotations


class AnyoError(Exception):
    """The service refused a request, or failed on it.

    Attributes:
        status: of HTTP; 200 where a stream of events ended with an error.
        code: a stable word for programs, e.g. `unknown_artifact`.
        request_id: what the service's log calls the request; "" where something else answered.
        field: the field that is wrong, where there is one.
        retry_after: seconds after which the service wants to be asked again; None where it does not say.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str = "unknown",
        request_id: str = "",
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.field = field
        self.retry_after = retry_after


class NotReachedError(Exception):
    """No answer came: no connection, it was cut, or it took too long."""
