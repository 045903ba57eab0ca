"""A store or a cache in Redis: its URL, and the settings of a Redis that is used as either.

redis://USER:PASSWORD@HOST:PORT/DB, rediss://… (TLS, with ?ssl_…=), unix://USER:PASSWORD@/PATH?db=DB
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote

from pydantic import Field, model_validator

from service.settings.addresses import Address, AddressError, StoreUrlError, decoded, split
from service.settings.base import Section

SCHEMES = ("redis", "rediss", "unix")
KNOWN = "redis://HOST:PORT/DB, rediss://HOST:PORT/DB and unix:///PATH?db=DB"
DEFAULT_PORT = 6379
LAST_DB = 2**31 - 1

_YES_NO = {"true": True, "false": False}
_PATHS = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_CHOICES: dict[str, dict[str, Any]] = {
    "ssl_cert_reqs": {name: name for name in ("required", "optional", "none")},
    "ssl_check_hostname": _YES_NO,
}
TLS_OPTIONS = (*_PATHS, *_CHOICES, "ssl_password", "ssl_ciphers")


class RedisSettings(Section):
    """Settings of Redis, as a store or as a cache."""

    store_idle_seconds: int = Field(
        default=0,
        ge=0,
        le=3_153_600_000,
        description="With Redis: a user to whom nothing was appended for so long is forgotten; 0 keeps users for ever.",
    )
    redis_timeout_ms: int = Field(
        default=50,
        ge=1,
        le=60_000,
        description="Longest wait for Redis in one read of a history or of the shared cache, connecting included; a "
        "request waits no longer, and goes on without. Lower it to 20 where Redis is near.",
    )
    redis_write_timeout_ms: int = Field(
        default=1000,
        ge=1,
        le=600_000,
        description="Longest wait for Redis to acknowledge an append or a deletion, its flush to the disk included; "
        "then it is answered with 503.",
    )
    redis_connections: int = Field(
        default=32,
        ge=1,
        le=10_000,
        description="Connections to Redis of each part (reads, writes, cache); operations beyond them wait for their "
        "turn, for at most ANYO_STORE_TIMEOUT_MS (cache: ANYO_REDIS_TIMEOUT_MS).",
    )
    breaker_failures: int = Field(
        default=5,
        ge=1,
        le=1_000_000,
        description="Failures of Redis in a row after which it is not asked at all, so that requests do not wait for "
        "time-outs; counted for reads, writes and cache apart.",
    )
    breaker_seconds: float = Field(
        default=1.0,
        ge=0.05,
        le=3600,
        description="Time between the probes (PING) of a Redis that is not asked; after one that succeeds it is asked "
        "again.",
    )

    @model_validator(mode="after")
    def _limits_leave_time(self) -> RedisSettings:
        if str(getattr(self, "store", "")).partition(":")[0] in SCHEMES:
            self._at_most_half("redis_timeout_ms", "store_timeout_ms")
            self._at_most_half("redis_write_timeout_ms", "deadline_ms")
        return self

    def _at_most_half(self, inner: str, outer: str) -> None:
        if 2 * getattr(self, inner) > getattr(self, outer):
            raise ValueError(
                f"{inner} ({getattr(self, inner)}) is more than half of {outer} ({getattr(self, outer)}), which "
                "would end the operation before it counts as a failure of Redis; raise the second or lower the first"
            )


SECTION = RedisSettings


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A database of a Redis; `socket` is the path of a socket file, or empty where `host` and `port` count."""

    scheme: str
    host: str = ""
    port: int = DEFAULT_PORT
    socket: str = ""
    db: int = 0
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: dict[str, Any] = field(default_factory=dict, repr=False)  # ssl_… option → value as redis-py takes it

    def __str__(self) -> str:
        """Return what may stand in messages and logs: no user, no password, no options."""
        if self.socket:
            return f"unix://{quote(self.socket)}?db={self.db}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}/{self.db}"


def parse_cache_url(url: str, what: str = "the cache's URL") -> RedisUrl:
    """Return what a cache's URL says: it is a Redis. Raises StoreUrlError."""
    return parse(url, what, KNOWN)


def parse(url: str, what: str, known: str) -> RedisUrl:
    """Return what a URL of this kind says; raises StoreUrlError, which calls it `what` and names all `known` forms."""
    if url.partition("://")[0] not in SCHEMES:
        raise StoreUrlError(f"{what} is not known; known are {known}")
    try:
        address = split(url)
        path, _, query = address.rest.partition("?")
        options = _options(query)
        db = _take_db(address, path, options)
        common: dict[str, Any] = {
            "db": db,
            "user": address.user,
            "password": address.password,
            "tls": _tls(address.scheme, options),
        }
        if address.scheme == "unix":
            return RedisUrl("unix", socket=_socket(address, path), **common)
        if not address.host:
            raise AddressError("it names no host")
        return RedisUrl(address.scheme, host=address.host, port=address.port or DEFAULT_PORT, **common)
    except AddressError as error:
        raise StoreUrlError(f"{what} cannot be read: {error} (known are {known})") from None


def _options(query: str) -> dict[str, str]:
    if not query:
        return {}
    try:
        pairs = [(name, value) for name, value in parse_qsl(query, keep_blank_values=True, strict_parsing=True)]
    except ValueError:
        raise AddressError("what stands behind '?' is not NAME=VALUE&NAME=VALUE") from None
    options = dict(pairs)
    if len(options) < len(pairs):
        raise AddressError("a parameter stands behind '?' twice")
    if {"password", "username"} & set(options):
        raise AddressError("user name and password stand before the host (USER:PASSWORD@), not behind '?'")
    # The name of a parameter is shown only if it looks like one.
    unknown = [name for name in options if name != "db" and name not in TLS_OPTIONS]
    if unknown:
        named = ", ".join(name if re.fullmatch("[a-z_]{1,32}", name) else "(unreadable)" for name in sorted(unknown))
        raise AddressError(
            f"it sets {named}; only db and {', '.join(TLS_OPTIONS)} can be set there, time-outs and connections are "
            "settings (ANYO_REDIS_…)"
        )
    return options


def _take_db(address: Address, path: str, options: dict[str, str]) -> int:
    given = [options.pop("db")] if "db" in options else []
    if address.scheme != "unix" and path not in ("", "/"):
        given.append(path[1:])
    if not given:
        return 0
    if len(given) > 1:
        raise AddressError("the database stands both behind the host and as db=; one of them is enough")
    text = given[0]
    if not re.fullmatch("0|[1-9][0-9]{0,9}", text) or int(text) > LAST_DB:
        named = f"{text!r}" if re.fullmatch("[A-Za-z0-9_.-]{1,32}", text) else "something else"
        raise AddressError(f"the database is a number, 0 or more, and {named} stands there")
    return int(text)


def _socket(address: Address, path: str) -> str:
    if address.host or address.port or not path.strip("/"):
        raise AddressError("it names no socket file with its whole path: unix:///run/redis.sock?db=0")
    return decoded(path, "the path")


def _tls(scheme: str, options: dict[str, str]) -> dict[str, Any]:
    if options and scheme != "rediss":
        raise AddressError(f"it sets {', '.join(sorted(options))}, which only rediss:// (TLS) uses")
    tls: dict[str, Any] = {}
    for name, value in options.items():
        if not value:
            raise AddressError(f"{name} is empty")
        choices = _CHOICES.get(name)
        if choices is not None and value.lower() not in choices:
            raise AddressError(f"{name} is none of {', '.join(choices)}")
        tls[name] = value if choices is None else choices[value.lower()]
    if "ssl_keyfile" in tls and "ssl_certfile" not in tls:
        raise AddressError("ssl_keyfile is set without ssl_certfile")
    return tls
