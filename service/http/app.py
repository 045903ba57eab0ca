"""The ASGI application: routes, middleware, errors in one shape."""

from __future__ import annotations

from typing import cast

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.errors import AnyoError, UnknownName, shown
from service.http.auth import AnswerHeaders, Authorization
from service.http.errors import CODE_OF_STATUS, HttpError, NotAllowed, error_body, error_headers, status_of, unforeseen
from service.http.middleware import RequestMiddleware, request_info
from service.http.openapi import describe
from service.http.path_ids import allowed_methods, readable
from service.http.routes import (
    artifacts,
    batch,
    feedback,
    generative,
    item_changes,
    items,
    operations,
    pages,
    rank,
    recommend,
    users,
)
from service.http.routes.common import input_error
from service.http.routing import Routes
from service.http.starlette_adapter import App, Shortcut
from service.service import Service
from service.version import project_version

DESCRIPTION = """\
What will this user want next? A language model reads the history in one forward pass, and an item index
answers. Everything but GET is sent with `content-type: application/json`, also without a body. Every error is
`{"error": {"code", "message", "field"?, "request_id"}}`; every answer carries `X-Request-ID` and `Server-Timing`.
"""


ROUTERS = [
    module.router
    for module in (
        recommend,
        batch,
        rank,
        generative,
        users,
        items,
        item_changes,
        feedback,
        artifacts,
        operations,
        pages,
    )
]


def create_app(service: Service) -> App:
    """Return the application around a service, which whoever serves it starts and closes."""
    app = _framework_app()
    app.state.service = service
    for router in ROUTERS:
        app.include_router(router)
    app.state.routes = [route for router in ROUTERS for route in router.routes]
    app.frame = _frame(app, service)
    app.add_exception_handler(AnyoError, _own_error)
    app.add_exception_handler(HTTPException, _framework_error)
    app.add_exception_handler(RequestValidationError, _wrong_parameter)
    app.add_exception_handler(Exception, _unforeseen)
    describe(app)
    return app


def _framework_app() -> App:
    """Return FastAPI's application without what is ours: pages, metrics, logs."""
    return App(
        title="anyo",
        version=project_version(),
        description=DESCRIPTION,
        # Their pages load scripts from elsewhere; `/docs` and `/openapi.json` are routes of ours.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
        # Metrics and logs are our own; FastAPI would look for OpenTelemetry's on every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )


def _frame(app: App, service: Service) -> RequestMiddleware:
    """Return what every request passes before a route: limits, metrics and headers, then authorization."""
    # Only what is listed here is ever found. What the framework has beyond it is no mistake of a caller but of ours.
    routes = Routes([*app.state.routes, *app.routes_beyond(ROUTERS)])
    gate = Authorization(
        Shortcut(app.run_admitted_only(), app.state.routes),
        settings=service.settings,
        metrics=service.metrics,
        routes=routes,
        admin_keys=service.admin_keys,
    )
    return RequestMiddleware(
        gate,
        metrics=service.metrics,
        max_body_bytes=service.settings.max_body_bytes,
        tracing=service.tracing,
        headers=AnswerHeaders(service.settings.cors_origins),
    )


def _operation_id(route: APIRoute) -> str:
    """Return the name of the route's function: what generated clients call theirs."""
    return route.name


async def _own_error(request: Request, error: Exception) -> Response:
    return _error_answer(request, cast(AnyoError, error))


async def _framework_error(request: Request, error: Exception) -> Response:
    """Answer what starlette itself refuses: unknown paths, wrong methods."""
    raised = cast(HTTPException, error)
    path = shown(readable(request.scope["path"]))
    own: AnyoError
    if raised.status_code == 404:
        own = UnknownName(f"there is no {path}; GET /openapi.json lists every path", code="unknown_path")
    elif raised.status_code == 405:
        # The framework names the methods of one route only; the path may have several.
        allowed = ", ".join(sorted(allowed_methods(request.app.state.routes, request.scope)))
        own = NotAllowed(f"{request.method} is not allowed on {path}; allowed: {allowed}")
        raised.headers = {**(raised.headers or {}), "Allow": allowed}
    else:
        own = HttpError(str(raised.detail), code=CODE_OF_STATUS.get(raised.status_code, "error"))
        own.status = raised.status_code
    answer = _error_answer(request, own)
    answer.headers.update(raised.headers or {})
    return answer


async def _unforeseen(request: Request, error: Exception) -> Response:
    # The framework raises the error again, and the frame logs it.
    return _error_answer(request, unforeseen())


async def _wrong_parameter(request: Request, error: Exception) -> Response:
    mistakes = [
        # Without the part that says "query" or "path": the name is what a caller knows.
        {**mistake, "loc": tuple(mistake["loc"][1:])}
        for mistake in cast(RequestValidationError, error).errors()
    ]
    return _error_answer(request, input_error(mistakes))


def _error_answer(request: Request, error: AnyoError) -> Response:
    body = error_body(error.code, error.message, request_info(request).request_id, error.field)
    answer = Response(body, status_code=status_of(error), media_type="application/json")
    answer.raw_headers.extend(error_headers(error))
    return answer
