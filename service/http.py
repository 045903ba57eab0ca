"""uvicorn's HTTP protocol with an end to what it collects before a request exists, and errors in our one shape."""

from __future__ import annotations

import asyncio
import uuid
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.departure import SCOPE_KEY, Departures
from service.errors import error_body

# Bytes that may arrive without starting a request, ending its head, or belonging to its body: endless request
# lines, headers and trailers would otherwise fill the memory, since no later limit sees them.
MAX_HEAD_BYTES = 65_536


class LimitedHttp(HttpToolsProtocol):
    """One connection."""

    _progress = False
    _without_progress = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        self._departures = Departures()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever computes for this client."""
        super().connection_lost(exc)
        self._departures.leave()

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived; refuse a head that does not end."""
        self._progress = False
        super().data_received(data)
        self._without_progress = 0 if self._progress else self._without_progress + len(data)
        if self._without_progress > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(
                431, "head_too_large", f"the request's line and headers are larger than {MAX_HEAD_BYTES} bytes"
            )

    def on_message_begin(self) -> None:
        """Note that a request begins."""
        super().on_message_begin()
        self.scope[SCOPE_KEY] = self._departures  # type: ignore[literal-required]
        self._progress = True

    def on_headers_complete(self) -> None:
        """Note that its head is complete."""
        super().on_headers_complete()
        self._progress = True

    def on_body(self, body: bytes) -> None:
        """Note that its body grows."""
        super().on_body(body)
        self._progress = True

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP request."""
        self._refuse(400, "bad_request", "this is not an HTTP/1.1 request that can be read")

    def _refuse(self, status: int, code: str, message: str) -> None:
        # In the middle of another answer on this connection there is no room for this one.
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            request_id = uuid.uuid4().hex
            body = error_body(code, message, request_id)
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
