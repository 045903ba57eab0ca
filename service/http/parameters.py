"""The parameters of a request's query: what a route does not know, or gets twice, is refused on every route."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import parse_qsl

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import BaseRoute

from service.errors import InvalidInput, shortened, shown

MOST_PARAMETERS = 32  # far more than any route has; a query is taken apart up to here


class KnownParameters:
    """The names that each route takes."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._known = {id(route): tuple(_names(route)) for route in routes}

    def check(self, route: BaseRoute, query: bytes) -> None:
        """Raise InvalidInput where a route does not take all parameters of a query once."""
        _check(query, self._known[id(route)])


def _names(route: BaseRoute) -> Iterator[str]:
    """Yield the names of a route's query parameters."""
    for field in route.dependant.query_params if isinstance(route, APIRoute) else ():
        kind = field.field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from kind.model_fields
        else:
            yield field.alias


def _check(query: bytes, known: Sequence[str]) -> None:
    try:
        given = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MOST_PARAMETERS)
    except ValueError:
        raise InvalidInput(f"the query has more than {MOST_PARAMETERS} parameters") from None
    seen: set[str] = set()
    for name, _ in given:
        if name not in known:
            listed = f"known are {', '.join(known)}" if known else "this endpoint takes none"
            raise InvalidInput(f"unknown parameter {shown(name)}; {listed}", field=shortened(name))
        if name in seen:
            raise InvalidInput(f"parameter {name!r} is given more than once; give it once", field=name)
        seen.add(name)
