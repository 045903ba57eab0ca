"""Runs the application under uvicorn: one process, one event loop, and an end that loses no request.

On SIGTERM, SIGHUP or Ctrl-C: readiness turns red; after `shutdown_delay_seconds` no new connection is taken; what
is in flight gets `drain_seconds`; then the process ends with code 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable

import structlog

from service.errors import StartError
from service.http.app import create_app
from service.http.uvicorn_adapter import BACKLOG, Server
from service.service import Service
from service.settings.addresses import is_loopback

log = structlog.get_logger(__name__)

# A forward pass takes the interpreter's lock again after each of its hundreds of operators. At Python's own 5 ms it
# gets a twentieth of its speed while the event loop is busy refusing.
SWITCH_INTERVAL_S = 1e-4

OnReady = Callable[[str], None]


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
    server = Server(create_app(service), service)
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
