"""Authentication: API keys, rate limits per key, cross-origin requests and security headers.

Keys are long and random, so the settings hold their plain SHA-256: it cannot be reversed, and a slow password hash
would cost every request milliseconds without a benefit.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from hmac import compare_digest

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Overloaded, UnknownName, shown
from service.http.callers import HEADERS, READING, Callers, Headers
from service.http.errors import Forbidden, RateLimited, Unauthorized
from service.http.path_ids import readable
from service.http.rights import OPEN_RIGHTS, Right
from service.http.routing import ADMITTED, Found, Routes, is_readable
from service.observability.metrics import Metrics
from service.settings import Settings


class LoopLagClock:
    """Tells how long the event loop's turns last: what was ready at its last look is handled in one go.

    One long turn may be a pause of the collector or a burst. Two in a row mean that requests outrun the loop.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._before = 0.0

    def __call__(self) -> float:
        """Return the seconds since the first call of this turn, or those of the turn before if that was shorter."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            # Comes first in the next turn, before whatever becomes ready from now on.
            asyncio.get_running_loop().call_soon(self._end)
        return min(now - self._since, self._before)

    def _end(self) -> None:
        if self._since is not None:
            self._before = time.monotonic() - self._since
        self._since = None


class Keys:
    """The keys of one kind, as `NAME:HASH` or `HASH`."""

    def __init__(self, entries: Sequence[str]) -> None:
        self._known: list[tuple[str, bytes]] = []
        for number, entry in enumerate(entries, 1):
            name, _, digest = entry.rpartition(":")
            self._known.append((name or f"key {number}", bytes.fromhex(digest)))

    def __bool__(self) -> bool:
        return bool(self._known)

    def name_of(self, key: bytes | None) -> str | None:
        """Return the name of a key that is known. Takes as long for every key, right, nearly right or wrong."""
        if key is None:
            return None
        digest, found = hashlib.sha256(key).digest(), None
        for name, known in self._known:
            if compare_digest(known, digest):
                found = name
        return found


class TokenBuckets:
    """A bucket a key: it holds `burst` requests at most and gets `rate` more every second."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: dict[str | None, tuple[float, float]] = {}  # tokens left, and when that was so

    def take(self, key: str | None) -> None:
        """Take one token of a key, or of all clients together (None); raises RateLimited where none is left."""
        now = self._clock()
        tokens, then = self._buckets.get(key, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - then) * self._rate)
        if tokens < 1:
            self._buckets[key] = tokens, now
            raise RateLimited(
                f"more than {self._rate:g} requests a second (and {self._burst} at once) came "
                + ("from all clients together" if key is None else "with this key"),
                retry_after=max(1, math.ceil((1 - tokens) / self._rate)),
            )
        self._buckets[key] = tokens - 1, now


class Authorization:
    """ASGI middleware that refuses before anything of the request's body is read. Raises AnyoError.

    It finds the route, checks the right that this route declares, and names the route in the scope as the one that may
    run (`service.http.routing`).
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        metrics: Metrics,
        routes: Routes,
        admin_keys: Sequence[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        loop_delay: Callable[[], float] | None = None,
    ) -> None:
        self._app = app
        self._routes = routes
        self._loop_delay = loop_delay or LoopLagClock()
        self._longest_delay_s = settings.max_loop_delay_ms / 1000
        self._metrics = metrics
        self._api = Keys(settings.api_keys)
        self._admin = Keys(settings.admin_keys if admin_keys is None else admin_keys)
        self._callers = Callers(settings.host, settings.allowed_hosts, settings.cors_origins)
        self._limit = (
            TokenBuckets(settings.rate_limit, settings.rate_limit_burst, clock) if settings.rate_limit else None
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or raise."""
        if scope["type"] == "http":
            found, right = self._find(scope)
            self._check(scope, found, right)
            scope[ADMITTED] = found
        await self._app(scope, receive, send)

    def _find(self, scope: Scope) -> tuple[Found | None, Right]:
        """Return the route of a request and the right it takes. Names one of its path in `scope`, so that a refusal is
        counted under its endpoint."""
        method, path = scope["method"], scope["path"]
        found = self._routes.exact(method, path)
        if found is None:
            if not is_readable(scope):
                raise UnknownName(
                    f"there is no {shown(readable(path))}: a path is percent-encoded UTF-8 without control characters",
                    code="unknown_path",
                )
            found, others = self._routes.find(method, path)
            if found is None:
                if others:
                    scope["route"] = others[0].route
                # Without a key, what does not exist looks like what does.
                is_open = bool(others) and all(other.right in OPEN_RIGHTS for other in others)
                return None, Right.OPEN if is_open else Right.API
        scope["route"] = found.route
        return found, found.right

    def _check(self, scope: Scope, found: Found | None, right: Right) -> None:
        headers: Headers = scope.get(HEADERS) or dict(scope["headers"])
        if right is not Right.PROBE:
            self._callers.check_host(headers)
        if right is Right.API:
            self._check_load()
            self._take_turn(self._check_key(headers, found) if self._api else None)
        elif right is Right.ADMIN:
            self._check_admin(headers)
        if found is not None and scope["method"] not in READING:
            self._callers.check_change(headers)

    def _check_load(self) -> None:
        if self._longest_delay_s and (delay := self._loop_delay()) > self._longest_delay_s:
            self._metrics.rejected("loop_behind").inc()
            raise Overloaded(f"requests arrive faster than they can be read (by {1000 * delay:.0f} ms)", retry_after=1)

    def _take_turn(self, caller: str | None) -> None:
        if self._limit is not None:
            try:
                self._limit.take(caller)
            except RateLimited:
                self._metrics.rejected("rate_limited").inc()
                raise

    def _check_key(self, headers: Headers, found: Found | None) -> str:
        key = _sent_key(headers)
        if (name := self._api.name_of(key)) is not None:
            return name
        if (name := self._admin.name_of(key)) is not None:
            if found is None:  # may learn that it erred
                return f"admin {name}"
            raise Forbidden(
                "this is an admin key; it loads, unloads and activates artifacts and sets the traffic, and opens "
                "nothing else: send an API key"
            )
        raise _unauthorized(key, "an API key")

    def _check_admin(self, headers: Headers) -> None:
        if not self._admin:
            raise Forbidden(
                "artifacts, traffic and items cannot be changed here: no admin key is configured; make one with "
                "`python -m service key` and set its hash as ANYO_ADMIN_KEYS"
            )
        key = _sent_key(headers)
        if self._admin.name_of(key) is not None:
            return
        if self._api.name_of(key) is not None:
            raise Forbidden("this is an API key; artifacts, traffic and items are changed with an admin key")
        raise _unauthorized(key, "an admin key")


class AnswerHeaders:
    """Headers that every answer carries, and those that let pages of the configured origins read it."""

    ALWAYS = (
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"no-referrer"),
        (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
        (b"cache-control", b"no-store"),
    )
    PREFLIGHT = (
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-allow-headers", b"authorization, content-type, x-api-key, x-request-id"),
        (b"access-control-max-age", b"600"),
        (b"content-length", b"0"),
    )
    EXPOSED = (b"access-control-expose-headers", b"Retry-After, Server-Timing, X-Request-ID")

    def __init__(self, origins: Sequence[str] = ()) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)

    def of(self, origin: bytes | None) -> Sequence[tuple[bytes, bytes]]:
        """Return the headers for a request that names `origin`."""
        if not self._origins:
            return self.ALWAYS
        if origin not in self._origins or origin is None:
            return (*self.ALWAYS, (b"vary", b"Origin"))
        return (*self.ALWAYS, (b"vary", b"Origin"), (b"access-control-allow-origin", origin), self.EXPOSED)

    def preflight(self, method: str, headers: Headers) -> Sequence[tuple[bytes, bytes]] | None:
        """Return the answer's headers where this is a browser asking on behalf of a page that may; else None."""
        asks = method == "OPTIONS" and b"access-control-request-method" in headers
        return self.PREFLIGHT if asks and headers.get(b"origin") in self._origins else None


def _sent_key(headers: Headers) -> bytes | None:
    scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and value.strip():
        return value.strip()
    return headers.get(b"x-api-key")


def _unauthorized(key: bytes | None, needed: str) -> Unauthorized:
    given = "no key was sent" if key is None else "the key that was sent is not known"
    return Unauthorized(f"{given}; send {needed} as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")
