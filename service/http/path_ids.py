"""Ids in paths: any character, a slash too where it is percent-encoded; and which methods a path has.

The server decodes a path before it is matched, after which `/users/a%2Fb` and `/users/a/b` look alike. So encoded
slashes are marked first, by a character that no decoded path can hold, and turn into slashes inside an id only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote

from starlette.convertors import Convertor, register_url_convertor
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

SLASH = "\udc2f"  # a lone surrogate: decoding UTF-8 never gives one
ENCODED_SLASH = re.compile("%2f", re.IGNORECASE)


class IdConvertor(Convertor[str]):
    """`{user_id:id}`: one part of a path."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        """Return the id."""
        return readable(value)

    def to_string(self, value: str) -> str:
        """Return the id as it stands in a path."""
        return value.replace("/", "%2F")


register_url_convertor("id", IdConvertor())


def mark_encoded_slashes(scope: Scope) -> None:
    """Decode the path of a request again where that loses which slashes were encoded."""
    raw = scope.get("raw_path") or b""
    if b"%2f" in raw or b"%2F" in raw:
        parts = ENCODED_SLASH.split(raw.partition(b"?")[0].decode("latin-1"))
        scope["path"] = SLASH.join(unquote(part) for part in parts)


def readable(path: str) -> str:
    """Return a path, or a part of one, with marked slashes as slashes."""
    return path.replace(SLASH, "/")


def allowed_methods(routes: Sequence[BaseRoute], scope: Scope) -> set[str]:
    """Return every method that some route has for a request's path."""
    found: set[str] = set()
    for route in routes:
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return found | {"HEAD"} if "GET" in found else found


def note_route(scope: Scope) -> None:
    """Name the route in `scope` of a request that is refused before one is looked for, so that it is counted there."""
    for route in scope["app"].state.routes:
        if route.matches(scope)[0] is Match.FULL:
            scope["route"] = route
            return
