"""Everything that uses FastAPI and Starlette from inside: answers without their constructor, routes without a router.

pyproject.toml caps the versions of both, because what is used here may change with any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_type_hints

import orjson
from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.parameters import KnownParameters
from service.http.routing import ADMITTED, Found


class App(FastAPI):
    """FastAPI within the frame of every request. The frame stands outside of it, and not among its middleware, so that
    a request which the shortcut knows passes nothing that it does not need."""

    frame: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        scope["app"] = self
        await self.frame(scope, receive, send)

    def routes_beyond(self, routers: Sequence[APIRouter]) -> list[BaseRoute]:
        """Return the routes that the framework has beyond those of our routers."""
        return [route for route in self.routes if getattr(route, "original_router", None) not in routers]

    def run_admitted_only(self) -> ASGIApp:
        """Put `run_admitted` in the place of the framework's router; return the framework without the frame."""
        self.router.middleware_stack = run_admitted
        return super().__call__


class Shortcut:
    """Calls the functions of routes that take nothing but the request; all else goes to the framework.

    Solving dependencies that a route does not have and closing what was never opened take the framework as long as the
    rest of a cached answer. Which route a request has, and that it may run, the gate has said.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._parameters = KnownParameters(routes)
        alone = [route for route in routes if isinstance(route, APIRoute) and _takes_the_request_alone(route)]
        self._routes = frozenset(map(id, alone))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or raise what its function raises; raises InvalidInput where it has unknown parameters."""
        found: Found | None = scope.get(ADMITTED)
        if found is not None and scope.get("query_string"):
            self._parameters.check(found.route, scope["query_string"])
        if found is None or id(found.route) not in self._routes:
            await self._app(scope, receive, send)
            return
        answer: Response = await found.route.endpoint(Request(scope, receive, send))
        await answer(scope, receive, send)


def _takes_the_request_alone(route: APIRoute) -> bool:
    takes = route.dependant
    others = (
        takes.path_params, takes.query_params, takes.header_params, takes.cookie_params, takes.body_params,
        takes.dependencies,
    )  # fmt: skip
    alone = takes.request_param_name is not None and not any(others) and not route.dependencies
    return alone and get_type_hints(route.endpoint).get("return") is Response


async def run_admitted(scope: Scope, receive: Receive, send: Send) -> None:
    """Take the place of the framework's router: run the route that the gate found and let this request through to."""
    if scope["type"] != "http":
        raise RuntimeError(f"there are no routes for {scope['type']}")
    found: Found | None = scope.get(ADMITTED)
    if found is None:
        raise HTTPException(405 if scope.get("route") is not None else 404)
    scope["endpoint"], scope["path_params"] = found.route.endpoint, found.parameters
    await found.route.handle(scope, receive, send)


class JsonAnswer(Response):
    """A 200 whose bytes are made here, once, and whose headers need no putting together."""

    def __init__(self, content: Any) -> None:
        self.body, self.status_code, self.background = orjson.dumps(content), 200, None
        length = str(len(self.body)).encode()
        self.raw_headers = [(b"content-length", length), (b"content-type", b"application/json")]
