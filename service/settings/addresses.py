"""Reads addresses strictly: hosts, ports, origins, addresses of HTTP receivers. Standard library only.

The usual parsers forgive: a port that is no number, a path where a number belongs or a line break inside are dropped in
silence, and the service then talks to another place than the one that was meant. Here they are errors. A message names
the part that is wrong and never repeats the text, which may hold a password.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import unquote

HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
LOOPBACK_NAMES = frozenset({"localhost", "localhost.localdomain"})
PORTS = {"http": 80, "https": 443}  # what a browser leaves out of an origin


class AddressError(ValueError):
    """An address is wrong; the message says which part, and holds nothing secret."""


class StoreUrlError(ValueError):
    """A URL of a store or cache is wrong; the message is one sentence without anything secret."""


class Address(NamedTuple):
    """The parts of `scheme://user:password@host:port/rest`, user and password decoded; `rest` begins with its slash."""

    scheme: str
    user: str | None
    password: str | None
    host: str
    port: int | None
    rest: str


def split(text: str) -> Address:
    """Return the parts of an address; `host` may be empty, as in `unix:///PATH`. Raises AddressError."""
    if not text.isprintable() or " " in text:
        raise AddressError("it holds a blank or a control character")
    scheme, separator, after = text.partition("://")
    if not separator or not re.fullmatch("[a-z][a-z0-9+.-]*", scheme):
        raise AddressError("it does not begin with SCHEME:// in lower case")
    place = re.split("[/?#]", after, maxsplit=1)[0]
    rest = after[len(place) :]
    if "@" in rest or "#" in rest:
        raise AddressError(
            "'@' or '#' stands behind the host; in a user name, a password or a path they are written %40 and %23, "
            "'/' and '?' are written %2F and %3F"
        )
    login, at, place = place.rpartition("@")
    name, colon, password = login.partition(":")
    host, port = split_host(place)
    return Address(
        scheme,
        decoded(name, "the user name") if at and name else None,
        decoded(password, "the password") if colon else None,
        host,
        port,
        rest,
    )


def redacted(text: str) -> str:
    """Return an address as it may stand in messages: without user, password, parameters (a signed address has its
    signature there) and fragment; of one that cannot be read, its scheme alone. The path of a file stays as it is."""
    if "://" not in text:
        return text
    try:
        address = split(text)
    except AddressError:
        scheme = text.partition("://")[0]
        return f"{scheme}://…" if re.fullmatch("[A-Za-z][A-Za-z0-9+.-]{0,15}", scheme) else "(an address)"
    host = f"[{address.host}]" if ":" in address.host else address.host
    port = "" if address.port is None else f":{address.port}"
    return f"{address.scheme}://{host}{port}{address.rest.partition('?')[0]}"


def split_host(place: str) -> tuple[str, int | None]:
    """Return host (IPv6 without brackets) and port of `host`, `host:port`, `[IPv6]:port`; raises AddressError."""
    if place.startswith("["):
        inside, closed, behind = place[1:].partition("]")
        if not closed or (behind and not behind.startswith(":")):
            raise AddressError("the host begins with '[' and is no [IPv6] or [IPv6]:PORT")
        host, colon, port = inside, behind[:1], behind[1:]
    else:
        host, colon, port = place.partition(":")
    if host:
        check_host(host)
    if not colon:
        return host, None
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise AddressError("the port is no number from 1 to 65535")
    return host, int(port)


def check_host(host: str) -> str:
    """Return a host name or an IP address (IPv6 without brackets) as it is; raises AddressError."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # Digits and dots alone are a mistyped address: libraries read `1` and `127.1` as addresses too.
        if not HOST_NAME.fullmatch(host) or len(host) > 253 or re.fullmatch(r"[0-9.]+|0[xX][0-9A-Fa-f.]+", host):
            raise AddressError("the host is neither a host name nor an IP address") from None
    return host


def decoded(text: str, what: str) -> str:
    """Return text with its %XX read as UTF-8; raises AddressError."""
    if BAD_ESCAPE.search(text):
        raise AddressError(f"{what} holds a '%' that is not followed by two hexadecimal digits; '%' itself is %25")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise AddressError(f"{what} is not UTF-8 once its %XX are decoded") from None


def check_origin(text: str) -> str:
    """Return an origin as a browser sends it, `https://shop.example`; raises AddressError."""
    address = split(text)
    if address.scheme not in PORTS or not address.host or text != origin_of(address):
        raise AddressError(
            "it is not written as a browser sends an origin: http:// or https://, the host in lower case, the port "
            "unless it is the usual one, and nothing behind"
        )
    return text


def origin_of(address: Address) -> str:
    """Return the origin of an address as a browser sends it."""
    host = f"[{address.host.lower()}]" if ":" in address.host else address.host.lower()
    port = "" if address.port in (None, PORTS.get(address.scheme)) else f":{address.port}"
    return f"{address.scheme}://{host}{port}"


def check_receiver(text: str) -> str:
    """Return the address of an HTTP receiver, `http://collector:4318` with or without a path; raises AddressError."""
    address = split(text)
    if address.scheme not in PORTS or not address.host:
        raise AddressError("it is not http://HOST:PORT or https://HOST:PORT")
    if address.user is not None or address.password is not None:
        raise AddressError("it holds a user name or a password; OTEL_EXPORTER_OTLP_HEADERS is where they belong")
    if "?" in address.rest:
        raise AddressError("it holds parameters behind '?', and there are none")
    return text


def is_loopback(host: str) -> bool:
    """Return whether an address or name reaches this machine only."""
    if host.lower() in LOOPBACK_NAMES:
        return True
    address = ip_address(host.strip("[]"))
    return address is not None and address.is_loopback


def ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an IP address, or None for text that is none."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
