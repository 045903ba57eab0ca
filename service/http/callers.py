"""Checks of requests that a browser may have sent on behalf of a foreign page.

A page can make any browser send requests to an address that only the browser's machine reaches. Three checks keep it
out:

- the name in `Host`. A page whose own name was pointed here (DNS rebinding) is no foreign page for the browser, but its
  requests carry that name, which is not ours;
- `Origin`, which a browser adds to every request that may change something, and which a page cannot forge;
- the content type, also of a request without a body: before it sends JSON elsewhere for a page, a browser asks first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.errors import shown
from service.http.errors import BadRequest, Forbidden
from service.settings.addresses import AddressError, check_origin, ip_address, is_loopback, split_host

READING = frozenset({"GET", "HEAD", "OPTIONS"})
ANY = "*"
HEADERS = "anyo.headers"  # in the scope: the headers as a dictionary, made once
REMEMBERED = 1000  # accepted values of Host; each port makes another
Headers = Mapping[bytes, bytes]


def host_fault(version: str | None, headers: Headers, given: Sequence[tuple[bytes, bytes]]) -> BadRequest | None:
    """Return an error unless there is one Host header; HTTP/1.0 may have none (RFC 9112, section 3.2).

    Args:
        version: of HTTP, where it is known.
        headers: as a dictionary.
        given: the same as they came, in which a name may stand twice.
    """
    if len(headers) != len(given) and sum(name == b"host" for name, _ in given) > 1:
        return BadRequest("the request has more than one Host header")
    if version == "1.1" and b"host" not in headers:
        return BadRequest("the request has no Host header; HTTP/1.1 needs one")
    return None


class Callers:
    """Which hosts and origins requests may name: `host` is what the service listens on."""

    def __init__(self, host: str, allowed_hosts: Sequence[str] = (), origins: Sequence[str] = ()) -> None:
        self._any = ANY in allowed_hosts
        self._names = {_plain(name) for name in (host, *allowed_hosts)}
        # Beyond loopback the machine has addresses that it does not know of: those of a cluster, of a container's host.
        # No name can be pointed anywhere where there is none, so an address is safe.
        self._addresses = not is_loopback(host)
        self._origins = frozenset(origin.encode() for origin in origins)
        self._accepted: set[bytes] = set()

    def check_host(self, headers: Headers) -> None:
        """Raise Forbidden unless the request names this service as its host. No browser leaves the name out."""
        host = headers.get(b"host")
        if host is None or host in self._accepted or self._any:
            return
        text = host.decode("latin-1")
        if not self._is_ours(text):
            raise Forbidden(
                f"the Host header says {shown(text)}, and this service answers under its own name and address only; "
                "name other hosts in ANYO_ALLOWED_HOSTS",
                code="unknown_host",
            )
        if len(self._accepted) < REMEMBERED:
            self._accepted.add(host)

    def check_change(self, headers: Headers) -> None:
        """Raise Forbidden or BadRequest for a request that may change something and could come from a foreign page."""
        origin = headers.get(b"origin")
        if origin is not None and origin not in self._origins and not _is_own(origin, headers.get(b"host", b"")):
            raise Forbidden(
                f"the request comes from a page of {shown(origin.decode('latin-1'))}; pages from elsewhere change "
                "nothing here unless ANYO_CORS_ORIGINS names their origin",
                code="foreign_origin",
            )
        declared = headers.get(b"content-type", b"")
        if declared != b"application/json" and not is_json(declared):
            raise BadRequest(
                f"the request has content type {shown(declared.decode('latin-1'))}; send everything but GET with "
                "'content-type: application/json', also where there is no body",
                code="not_json",
            )

    def _is_ours(self, text: str) -> bool:
        try:
            host, _ = split_host(text)
        except AddressError:
            return False
        host = _plain(host)
        return bool(host) and (
            host in self._names or is_loopback(host) or (self._addresses and ip_address(host) is not None)
        )


def is_json(declared: bytes) -> bool:
    """Return whether a content type is JSON's, or that of JSON lines."""
    kind = declared.partition(b";")[0].strip().lower()
    return kind in (b"application/json", b"application/x-ndjson") or (
        kind.startswith(b"application/") and kind.endswith(b"+json")
    )


def _is_own(origin: bytes, host: bytes) -> bool:
    """Whether an origin is the place that the request was sent to; over which of the two schemes, a proxy knows."""
    text = origin.decode("latin-1")
    try:
        check_origin(text)
        scheme, _, place = text.partition("://")
        usual = {"http": 80, "https": 443}[scheme]
        (name, port), (own, own_port) = split_host(place), split_host(host.decode("latin-1"))
    except AddressError:
        return False
    return bool(own) and _plain(name) == _plain(own) and (port or usual) == (own_port or usual)


def _plain(host: str) -> str:
    host = host.strip("[]").lower().removesuffix(".")
    address = ip_address(host)
    return host if address is None else str(address)
