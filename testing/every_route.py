"""Every route of the service with a request that it takes, for tests of what must hold on all of them."""

from __future__ import annotations

from typing import Any

from service.http.app import create_app
from service.service import Service
from service.settings import load_settings

HISTORY = {"history": ["item-0003"]}
BODIES: dict[str, Any] = {
    "/recommend": HISTORY,
    "/recommend/batch": {"requests": [HISTORY]},
    "/rank": {**HISTORY, "candidates": ["item-0001", "item-0002"]},
    "/recommend/generative": HISTORY,
    "/compare": HISTORY,
    "/users/{user_id:id}/events": {"events": [{"item_id": "item-0003"}]},
    "/feedback": {"request_id": "one", "item_id": "item-0003"},
    "/traffic": {"weights": {}},
}
Call = tuple[str, str, str]  # method, path of the route, address


def calls() -> list[Call]:
    """Return one call of every method of every route, `/openapi.json` among them; HEAD is none of them."""
    app = create_app(Service(load_settings(store="sqlite:///:memory:")))
    return sorted({
        (method, route.path, _address(route.path)) for route in app.state.routes for method in route.methods - {"HEAD"}
    })  # fmt: skip


def _address(path: str) -> str:
    for name, value in {"{user_id:id}": "anna", "{item_id:id}": "item-0003", "{name:id}": "fake"}.items():
        path = path.replace(name, value)
    return path
