"""Reads the URLs of stores and caches, strictly: everything in one has to mean something. Standard library only.

    sqlite:///PATH, sqlite:///:memory:
    redis://USER:PASSWORD@HOST:PORT/DB, rediss://… (TLS, with ?ssl_…=), unix://USER:PASSWORD@/PATH?db=DB

No message repeats a URL: `str` of a parsed one has no password, and the errors name the part that is wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote

from service.addresses import Address, AddressError, decoded, split

DEFAULT_PORT = 6379
LAST_DB = 2**31 - 1
REDIS_SCHEMES = ("redis", "rediss", "unix")
MEMORY = ":memory:"

_YES_NO = {"true": True, "false": False}
_PATHS = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_CHOICES: dict[str, dict[str, Any]] = {
    "ssl_cert_reqs": {name: name for name in ("required", "optional", "none")},
    "ssl_check_hostname": _YES_NO,
}
TLS_OPTIONS = (*_PATHS, *_CHOICES, "ssl_password", "ssl_ciphers")


class StoreUrlError(ValueError):
    """A URL of a store or cache is wrong; the message is one sentence without anything secret."""


@dataclass(frozen=True, slots=True)
class SqliteUrl:
    """A SQLite file, or `:memory:`."""

    path: str

    def __str__(self) -> str:
        return f"sqlite:///{self.path}"


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


StoreUrl = SqliteUrl | RedisUrl

KNOWN_REDIS = "redis://HOST:PORT/DB, rediss://HOST:PORT/DB and unix:///PATH?db=DB"
KNOWN = f"sqlite:///PATH, sqlite:///:memory:, {KNOWN_REDIS}"


def parse_store_url(url: str, what: str = "the store's URL") -> StoreUrl:
    """Return what a store's URL says; raises StoreUrlError, whose message calls the URL `what`."""
    if url.startswith("sqlite:"):
        return _sqlite(url, what)
    return _redis(url, what, KNOWN)


def parse_cache_url(url: str, what: str = "the cache's URL") -> RedisUrl:
    """Return what a cache's URL says: it is a Redis. Raises StoreUrlError."""
    return _redis(url, what, KNOWN_REDIS)


def shown(url: str) -> str:
    """Return a URL as it may stand in messages and logs; of one that is wrong only that it is."""
    try:
        return str(parse_store_url(url))
    except StoreUrlError:
        return "(a URL that cannot be read)"


def _sqlite(url: str, what: str) -> SqliteUrl:
    path = url.removeprefix("sqlite:///")
    if path == url or not path:
        raise StoreUrlError(f"{what} begins with sqlite: and names no file; known are {KNOWN}")
    if not path.isprintable() or path != path.strip():
        raise StoreUrlError(f"{what} begins or ends with a blank, or holds a control character")
    if re.search("[?#]", path):
        raise StoreUrlError(f"{what} holds '?' or '#'; sqlite:///PATH has no parameters")
    if path.startswith("~"):
        raise StoreUrlError(f"{what} begins with '~', which is not replaced here; write the folder out")
    if path != MEMORY and (path.startswith((":", "file:")) or path.endswith("/")):
        raise StoreUrlError(f"{what} names no file; known are sqlite:///PATH and sqlite:///{MEMORY}")
    return SqliteUrl(path)


def _redis(url: str, what: str, known: str) -> RedisUrl:
    if url.partition("://")[0] not in REDIS_SCHEMES:
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
