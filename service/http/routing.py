"""Finds the route of a request, once: the rights are checked on what is found here, and it is what runs.

Nothing else decides by a request's path. Two parts that each match paths for themselves differ one day, in a line break
at the end or a second slash, and a request is then checked as one thing and handled as another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

from starlette.routing import BaseRoute, Route
from starlette.types import Scope

from service.http.path_ids import ENCODED_SLASH
from service.http.rights import Right, right_of

# C0, DEL, C1, and Unicode's own ends of lines and paragraphs: no id holds them, and log lines and regular expressions
# take some of them for the end of what they read.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
ADMITTED = "anyo.admitted"  # in the scope: the route that the gate let this request through to


class Found(NamedTuple):
    """A route, what it needs, and the values of its path's parameters."""

    route: Route
    right: Right
    parameters: dict[str, Any]


class Routes:
    """Every route of the application. Raises TypeError for one that is no HTTP route or does not declare its right."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._exact: dict[tuple[str, str], Found] = {}
        self._exact_paths: dict[str, list[Found]] = {}
        self._patterns: list[Found] = []
        for route in routes:
            right = right_of(route)
            if not isinstance(route, Route):
                raise TypeError(f"{route!r} is no HTTP route")
            found = Found(route, right, {})
            if route.param_convertors:
                self._patterns.append(found)
                continue
            self._exact_paths.setdefault(route.path, []).append(found)
            for method in route.methods or ():
                # As in the framework: of two routes for the same, the first one runs.
                self._exact.setdefault((method, route.path), found)

    def exact(self, method: str, path: str) -> Found | None:
        """Return the route of a path without parameters, without looking at any other."""
        return self._exact.get((method, path))

    def find(self, method: str, path: str) -> tuple[Found | None, list[Found]]:
        """Return the route for a method and a path, and all that the path has with whatever method."""
        others = list(self._exact_paths.get(path, ()))
        for found in self._patterns:
            # `match` would let a line break follow, since `$` does.
            if (match := found.route.path_regex.fullmatch(path)) is not None:
                convertors = found.route.param_convertors
                parameters = {name: convertors[name].convert(value) for name, value in match.groupdict().items()}
                others.append(found._replace(parameters=parameters))
        return next((found for found in others if method in (found.route.methods or ())), None), others


def is_readable(scope: Scope) -> bool:
    """Return whether a path is UTF-8, percent-encoded as it should be, and without control characters."""
    path, raw = scope["path"], scope.get("raw_path") or b""
    if CONTROL.search(path):
        return False
    if b"%" not in raw:
        return raw.isascii()
    text = raw.partition(b"?")[0].decode("latin-1")
    if not text.isascii() or BAD_ESCAPE.search(text):
        return False
    try:
        for part in ENCODED_SLASH.split(text):
            unquote(part, errors="strict")
    except UnicodeDecodeError:
        return False
    return True
