"""The OpenAPI description is complete, its examples fit its schemas, and the docs know every endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from service.openapi import EXAMPLES
from service.service import Service
from service.settings import load_settings

METHODS = {"get", "post", "put", "delete", "patch"}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return create_app(Service(load_settings(store="sqlite:///:memory:"))).openapi()


def operations(schema: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, item in schema["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    ]


def test_every_endpoint_has_an_example_for_what_it_takes_and_gives(schema: dict[str, Any]) -> None:
    found = operations(schema)
    assert len(found) == 19
    for path, method, operation in found:
        where = f"{method} {path}"
        assert operation["description"], where
        assert "example" in operation["responses"]["200"]["content"]["application/json"], where
        for status, answer in operation["responses"].items():
            content = answer["content"]["application/json"]
            assert "example" in content and "$ref" in content["schema"], (where, status)
            if status != "200":
                assert content["schema"]["$ref"].endswith("/ErrorAnswer"), (where, status)
        if method in ("post", "put") and not path.startswith("/artifacts"):
            assert "example" in operation["requestBody"]["content"]["application/json"], where


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [found for value in node.values() for found in references(value)]
        return [found for value in node for found in references(value)] if isinstance(node, list) else []

    known = {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}
    assert set(references(schema)) <= known
    assert "HTTPValidationError" not in str(schema), "errors have our shape, not the framework's"


@pytest.mark.parametrize("model", EXAMPLES, ids=lambda model: model.__name__)
def test_examples_fit_their_schemas(model: Any) -> None:
    model.model_validate(EXAMPLES[model])


def test_the_docs_know_every_endpoint_and_every_error(schema: dict[str, Any], repository: Path) -> None:
    text = (repository / "docs" / "api.md").read_text(encoding="utf-8")
    for path, method, _ in operations(schema):
        assert f"`{method.upper()} {path}`" in text, f"{method.upper()} {path}"
    from service import errors

    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.AnyoError) and error.status != 499:
            assert f"| {error.status} |" in text and f"`{error.code}`" in text, error
