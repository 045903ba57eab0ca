"""Runs the application under uvicorn: one process, one event loop, and an end that loses no request.

On SIGTERM, SIGHUP or Ctrl-C: readiness turns red; after `shutdown_delay_seconds` no new connection is taken; what
is in flight gets `drain_seconds`; then the process ends with code 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import structlog
import uvicorn

from service.early import signals_that_end
from service.errors import StartError
from service.http.app import create_app
from service.http.protocol import LimitedHttp
from service.service import Service
from service.settings.addresses import is_loopback

log = structlog.get_logger(__name__)

# What uvicorn waits beyond our own drain before it cancels handlers: time to write the last answers.
LAST_ANSWERS_S = 2
IDLE_CONNECTION_S = 30
BACKLOG = 2048
# A forward pass takes the interpreter's lock again after each of its hundreds of operators. At Python's own 5 ms it
# gets a twentieth of its speed while the event loop is busy refusing.
SWITCH_INTERVAL_S = 1e-4
ACCEPTED_AT_ONCE = 64

OnReady = Callable[[str], None]


class Server(uvicorn.Server):
    """uvicorn's server with our own way to end."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        config = uvicorn.Config(
            create_app(service),
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


def serve(service: Service, on_ready: OnReady = lambda url: None) -> None:
    """Serve until a signal; `on_ready` gets the base URL once every artifact is warm.

    Raises StartError: an artifact or the store cannot be opened, or the address cannot be listened on.
    """
    settings = service.settings
    if not settings.api_keys and not is_loopback(settings.host):
        log.warning("other machines can reach this port and no API key is asked for; set ANYO_API_KEYS, or keep the "
                    "port behind something that checks who asks", host=settings.host)  # fmt: skip
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with _listen(settings.host, settings.port) as listener, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(service, listener, on_ready))


async def _serve(service: Service, listener: socket.socket, on_ready: OnReady) -> None:
    server = Server(service)
    try:
        await service.start()
        assert service.loading is not None
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await asyncio.wait([serving, service.loading], return_when=asyncio.FIRST_COMPLETED)
        try:
            if not serving.done():
                service.loading.result()  # raises what loading raised
                on_ready(_url(service.settings.host, listener))
        except BaseException:
            server.should_exit = True
            raise
        finally:
            await serving
    finally:
        await service.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another address with --host, --port"
        ) from error
    return listener


def _url(host: str, listener: socket.socket) -> str:
    """Return an address that works on this machine; listening everywhere includes here."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    return f"http://{shown}:{listener.getsockname()[1]}"


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if os.name != "posix":
        return None
    import uvloop

    return uvloop.new_event_loop
