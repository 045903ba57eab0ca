"""Everything that uses uvicorn's own classes from inside: its HTTP protocol and its server.

The protocol gets an end to what it collects before a request exists, ignores offers of another protocol, and answers
errors in our one shape. The server gets our way to end and to take connections. pyproject.toml caps uvicorn's version,
because these classes may change with any.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import uuid
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import httptools
import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.early import signals_that_end
from service.http.disconnect import SCOPE_KEY, Disconnects
from service.http.errors import error_body
from service.service import Service

log = structlog.get_logger(__name__)

# What uvicorn waits beyond our own drain before it cancels handlers: time to write the last answers.
LAST_ANSWERS_S = 2
IDLE_CONNECTION_S = 30
BACKLOG = 2048
ACCEPTED_AT_ONCE = 64
# Bytes that may arrive without starting a request, ending its head, or belonging to its body: endless request
# lines, headers and trailers would otherwise fill the memory, since no later limit sees them.
MAX_HEAD_BYTES = 65_536
MAX_PIPELINED = 64  # requests of a connection that wait for the answers to those before them
FRAMING = (b"content-length", b"transfer-encoding")  # the headers that say where a body ends


class LimitedHttp(HttpToolsProtocol):
    """One connection."""

    _progress = False
    _without_progress = 0
    _repeats = False  # the head of a request is parsed again: its callbacks have run already
    _in_head = _count_head = _head_too_large = _too_many = False
    _running: RequestResponseCycle | None = None  # the request that is being answered; `cycle` is the newest one

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        self._departures = Disconnects()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever computes for this client."""
        super().connection_lost(exc)
        # uvicorn tells the newest request only; one with others behind it would write to a closed connection.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        self.pipeline.clear()
        self._departures.leave()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

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
            elif self._too_many:  # an answer out of turn would be taken for that of another request
                self.transport.close()
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
        if len(self.pipeline) >= MAX_PIPELINED:
            self._too_many = True
            raise ValueError("too many requests wait on this connection")
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


class Server(uvicorn.Server):
    """uvicorn's server with our own way to end."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        settings = service.settings
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            loop="uvloop" if os.name == "posix" else "asyncio",
            http=LimitedHttp,
            ws="none",
            lifespan="off",  # `serve` starts and closes the service, so that what fails there can be said plainly
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,  # nothing here depends on the client's address
            backlog=BACKLOG,
            timeout_keep_alive=IDLE_CONNECTION_S,
            timeout_graceful_shutdown=int(settings.drain_seconds) + LAST_ANSWERS_S,
        )
        super().__init__(config)
        self._service = service
        self._ending: asyncio.Task[None] | None = None
        self._twins: list[socket.socket] = []
        self._connecting: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals on the event loop; uvicorn's own way ends the process by the signal instead of code 0."""
        loop = asyncio.get_running_loop()
        numbers = signals_that_end()
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        if self._ending is not None:
            log.warning("second signal: ending at once", signal=signal.Signals(number).name)
            self.force_exit = self.should_exit = True
            return
        log.info("draining", signal=signal.Signals(number).name)
        self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        self._service.begin_draining()
        await asyncio.sleep(self._service.settings.shutdown_delay_seconds)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and take waiting connections in numbers.

        uvloop accepts one connection in each turn of its loop. Under load a turn takes tens of milliseconds, and new
        connections, those of probes among them, would wait in the kernel for seconds.
        """
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        for listener in sockets or ():
            twin = listener.dup()  # uvloop keeps the original for itself
            twin.setblocking(False)
            loop.add_reader(twin, self._accept, twin)
            self._twins.append(twin)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except OSError:  # none is waiting, it is gone again, or there are no descriptors left for now
                return
            connection.setblocking(False)
            task = asyncio.get_running_loop().create_task(self._connect(connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        return LimitedHttp(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def _stop_accepting(self) -> None:
        for twin in self._twins:
            asyncio.get_running_loop().remove_reader(twin)
            twin.close()
        self._twins.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connection, wait for the answers in flight, fail what is left after `drain_seconds`."""
        self._stop_accepting()
        cut = asyncio.create_task(self._cut_off())
        await super().shutdown(sockets)
        cut.cancel()

    async def _cut_off(self) -> None:
        await asyncio.sleep(self._service.settings.drain_seconds)
        await self._service.drain(0)
