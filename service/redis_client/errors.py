"""Sorts Redis' errors: is the setting wrong, or is Redis only away; was anything written before it failed.

At the start a Redis that is away is waited for, while one that will never let this service in as it is set up stops
the start: a wrong database, password or kind of encryption does not mend itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    InvalidResponse,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from service.settings.store_kinds.redis import RedisUrl

PROBE_S = 1.0  # for one attempt to talk the other way, with TLS or without

_BEFORE_WRITING_CODES = ("MISCONF", "NOREPLICAS", "BUSY ", "UNKILLABLE", "DENIED")
_PASSING = (ClusterDownError, TryAgainError)  # MASTERDOWN among them
_PASSING_CODES = ("BUSY ", "LOADING", "UNBLOCKED")


class NothingWritten(ResponseError):
    """A script of ours found something wrong and ended before it wrote."""


class BadData(ResponseError):
    """Redis answered in order, and what is stored there is not what this service writes."""


# Redis looks for these before a command and before the first write of a script (for a full memory only before that).
_BEFORE_WRITING = (
    NothingWritten, AuthenticationError, AuthorizationError, OutOfMemoryError, ReadOnlyError, NoScriptError, AskError,
    ClusterDownError, ClusterCrossSlotError, TryAgainError, BusyLoadingError,
)  # fmt: skip


def nothing_written(error: Exception) -> bool:
    """Return whether an error means that Redis had not begun to write."""
    if isinstance(error, _BEFORE_WRITING):
        return True
    return isinstance(error, ResponseError) and str(error).startswith(_BEFORE_WRITING_CODES)


def missing_files(url: RedisUrl) -> str | None:
    """Return what is wrong with the files that a URL names, or None."""
    for name, value in url.tls.items():
        if name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_ca_path") and not Path(value).exists():
            return f"{name} names {value!r}, which does not exist"
    return None


async def wrong_setup(url: RedisUrl, error: Exception) -> str | None:
    """Return why Redis will never let this service in as it is set up, or None where it is only away."""
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        return f"Redis does not let this service in: {error}"
    if isinstance(error, InvalidResponse):
        return f"what answers at {url} is no Redis, or expects TLS (rediss://)"
    if isinstance(error, ResponseError):
        if isinstance(error, _PASSING) or str(error).startswith(_PASSING_CODES):
            return None
        return f"Redis refuses database {url.db} of {url}: {error}"
    for cause in _causes(error):
        if isinstance(cause, PermissionError):
            return f"the socket file {url.socket} may not be opened: {cause.strerror}"
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the certificate of {url} is refused: {cause.verify_message} (ssl_ca_certs names whom to trust)"
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return f"no TLS connection to {url}: {cause.reason or cause}"
    return await _other_way(url)


async def _other_way(url: RedisUrl) -> str | None:
    """Return whether the server talks the way that was not asked for: to TLS, a plain Redis never answers."""
    if url.scheme == "redis" and await _speaks_tls(url):
        return f"{url} speaks TLS; its URL begins with rediss://"
    if url.scheme == "rediss" and await _speaks_plainly(url):
        return f"{url} speaks without TLS; its URL begins with redis://"
    return None


async def _speaks_tls(url: RedisUrl) -> bool:
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE  # nothing is sent: only whether it is TLS counts
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        async with asyncio.timeout(PROBE_S):
            _, writer = await asyncio.open_connection(url.host, url.port, ssl=anyone)
            writer.close()
            return True
    return False


async def _speaks_plainly(url: RedisUrl) -> bool:
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        async with asyncio.timeout(PROBE_S):
            reader, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(b"PING\r\n")
            answer = await reader.read(64)
            writer.close()
            return answer.startswith((b"+PONG", b"-NOAUTH", b"-DENIED", b"-LOADING"))
    return False


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
