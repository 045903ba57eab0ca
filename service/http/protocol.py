"""uvicorn's HTTP protocol with an end to what it collects before a request exists, offers of another protocol ignored,
and errors in our one shape.
"""

from __future__ import annotations

import asyncio
import uuid
from http import HTTPStatus

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http.disconnect import SCOPE_KEY, Disconnects
from service.http.errors import error_body

# Bytes that may arrive without starting a request, ending its head, or belonging to its body: endless request
# lines, headers and trailers would otherwise fill the memory, since no later limit sees them.
MAX_HEAD_BYTES = 65_536
FRAMING = (b"content-length", b"transfer-encoding")  # the headers that say where a body ends


class LimitedHttp(HttpToolsProtocol):
    """One connection."""

    _progress = False
    _without_progress = 0
    _repeats = False  # the head of a request is parsed again: its callbacks have run already
    _in_head = _count_head = _head_too_large = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        self._departures = Disconnects()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever computes for this client."""
        super().connection_lost(exc)
        self._departures.leave()

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived; refuse a head that does not end."""
        self._progress = False
        self._unset_keepalive_if_required()
        # Most of what arrives together is far too short to hold a head that is too large.
        self._count_head = self._in_head or len(data) > MAX_HEAD_BYTES
        try:
            self._parse(data)
        except httptools.HttpParserError:
            if self._head_too_large:
                self._refuse_head()
            else:
                self.send_400_response("")
            return
        self._without_progress = 0 if self._progress else self._without_progress + len(data)
        if self._without_progress > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse_head()

    def _parse(self, data: bytes) -> None:
        """Feed the parser. It stops at the end of a head that offers another protocol (Java's client offers HTTP/2 with
        every first request) and takes what follows for that protocol. The offer is optional, and is not taken: a new
        parser gets the same head without it, and goes on with the body."""
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if self.scope["method"] == "CONNECT":  # what follows would be a tunnel
                    self.cycle.keep_alive = False
                    super().on_message_complete()
                    return
                data = data[offer.args[0] :]
                self._begin_again()
            else:
                return

    def _begin_again(self) -> None:
        scope = self.scope
        lines = [b"%s * HTTP/%s" % (scope["method"].encode(), scope["http_version"].encode())]
        lines += [b"%s: %s" % header for header in scope["headers"] if header[0] in FRAMING]
        if not self.cycle.keep_alive:
            lines.append(b"connection: close")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._repeats = True
        self.parser.feed_data(b"\r\n".join(lines) + b"\r\n\r\n")
        self._repeats = False

    def on_message_begin(self) -> None:
        """Note that a request begins."""
        if self._repeats:
            return
        super().on_message_begin()
        self.scope[SCOPE_KEY] = self._departures  # type: ignore[literal-required]
        self._progress = self._in_head = True

    def on_url(self, url: bytes) -> None:
        """Collect the request's target."""
        if not self._repeats:
            super().on_url(url)

    def on_headers_complete(self) -> None:
        """Begin to answer, once the head is complete."""
        if self._repeats:
            return
        self._in_head = False
        if self._count_head and self._head_bytes() > MAX_HEAD_BYTES:
            self._head_too_large = True
            raise ValueError("the head is too large")
        super().on_headers_complete()
        self.headers = []  # trailers are no headers: they would join those that are read while the body comes
        self._progress = True

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        """Note that its body grows."""
        super().on_body(body)
        self._progress = True

    def on_message_complete(self) -> None:
        """Note that the request is complete; one that offers another protocol is not: its body has not been read."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _should_upgrade(self) -> bool:
        return False

    def _refuse_head(self) -> None:
        self._refuse(431, "head_too_large", f"the request's line and headers are larger than {MAX_HEAD_BYTES} bytes")

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
