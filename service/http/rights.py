"""Rights required by routes: declared by a decorator on the route's function, and checked when the route is called.

The application refuses to start if a route declares no right.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from starlette.routing import BaseRoute

F = TypeVar("F", bound=Callable[..., Any])
ATTRIBUTE = "anyo_right"


class Right(Enum):
    """Rights that a route can require."""

    PROBE = "probe"  # nothing, and the Host header may hold any name: balancers and orchestrators have their own
    OPEN = "open"  # nothing
    API = "api"  # an API key, where any is configured
    ADMIN = "admin"  # an admin key, always


OPEN_RIGHTS = frozenset({Right.PROBE, Right.OPEN})


def opened_by(right: Right) -> Callable[[F], F]:
    """Declare who may call a route; stands between the route's decorator and its function."""

    def declare(function: F) -> F:
        setattr(function, ATTRIBUTE, right)
        return function

    return declare


def right_of(route: BaseRoute) -> Right:
    """Return what a route declares; raises TypeError where it declares nothing."""
    right = getattr(getattr(route, "endpoint", None), ATTRIBUTE, None)
    if not isinstance(right, Right):
        path, methods = getattr(route, "path", repr(route)), getattr(route, "methods", None)
        raise TypeError(
            f"the route {' '.join(sorted(methods or ()))} {path} does not say who may call it; put one of "
            f"{', '.join(f'@opened_by(Right.{each.name})' for each in Right)} on its function"
        )
    return right
