"""The OpenAPI description is complete, its examples fit its schemas, and the docs know every endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service import errors
from service.http import errors as http_errors
from service.http import schemas
from service.http.app import create_app
from service.http.openapi import EXAMPLES
from service.http.schemas import ErrorAnswer
from service.service import Service
from service.settings import load_settings
from testing.fake_writer import make_generative_parts
from testing.running import running

METHODS = {"get", "post", "put", "delete", "patch"}
NO_JSON = ("/", "/docs", "/metrics")


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
    assert len(found) == 31
    for path, method, operation in found:
        where = f"{method} {path}"
        assert operation["description"], where
        if path not in NO_JSON:
            assert "example" in operation["responses"]["200"]["content"]["application/json"], where
        for status, answer in operation["responses"].items():
            if status == "200" and path in NO_JSON:
                continue
            content = answer["content"]["application/json"]
            assert "example" in content and "$ref" in content["schema"], (where, status)
            if status != "200":
                assert content["schema"]["$ref"].endswith("/ErrorAnswer"), (where, status)
        if method in ("post", "put") and not path.startswith("/artifacts"):
            (content,) = operation["requestBody"]["content"].values()
            assert "example" in content, where


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
    text = (repository / "docs" / "reference" / "http-api.md").read_text(encoding="utf-8")
    for path, method, _ in operations(schema):
        assert f"`{method.upper()} {path}`" in text, f"{method.upper()} {path}"
    for kind in {**vars(errors), **vars(http_errors)}.values():
        if isinstance(kind, type) and issubclass(kind, errors.AnyoError):
            status = http_errors.status_of(kind("a message"))
            assert status == 499 or (f"| {status} |" in text and f"`{kind.code}`" in text), kind


def test_operations_fields_and_tags_are_named_and_described(schema: dict[str, Any]) -> None:
    found = operations(schema)
    ids = [operation["operationId"] for _, _, operation in found]
    assert len(set(ids)) == len(ids) and all(name.replace("_", "").isalpha() and "__" not in name for name in ids)
    described = {tag["name"] for tag in schema["tags"] if tag["description"]}
    for path, method, operation in found:
        assert set(operation["tags"]) <= described, (method, path)
    for name, model in schema["components"]["schemas"].items():
        for field, properties in model.get("properties", {}).items():
            assert properties.get("description"), f"{name}.{field}"


def test_error_examples_are_true_and_differ(schema: dict[str, Any]) -> None:
    known = (Path(__file__).parents[3] / "docs" / "reference" / "http-api.md").read_text(encoding="utf-8")
    shown: dict[str, Any] = {}
    for path, method, operation in operations(schema):
        for status, answer in operation["responses"].items():
            if status == "200":
                continue
            example = answer["content"]["application/json"]["example"]
            ErrorAnswer.model_validate(example)
            assert shown.setdefault(status, example) == example, (method, path)
            (row,) = [line for line in known.splitlines() if line.startswith(f"| {status} |")]
            assert f"`{example['error']['code']}`" in row
        assert ("413" in operation["responses"]) == ("requestBody" in operation), (method, path)
    messages = [example["error"]["message"] for example in shown.values()]
    assert len(set(messages)) == len(messages) >= 11


def test_examples_of_answers_fit_as_they_are_published(schema: dict[str, Any]) -> None:
    for path, method, operation in operations(schema):
        content = operation["responses"]["200"]["content"].get("application/json")
        if content is not None:
            model = getattr(schemas, content["schema"]["$ref"].rpartition("/")[2])
            model.model_validate(content["example"])
            required = schema["components"]["schemas"][model.__name__].get("required", [])
            assert set(required) <= set(content["example"]), (method, path)


async def test_every_example_of_a_request_is_answered() -> None:
    async with running(generative=make_generative_parts(), item_store="sqlite:///:memory:") as anyo:
        published = (await anyo.client.get("/openapi.json")).json()
        sent = 0
        for path, method, operation in operations(published):
            if "requestBody" not in operation:
                continue
            ((kind, content),) = operation["requestBody"]["content"].items()
            example = content["example"]
            if path == "/feedback":  # its request_id is that of an answer
                answered = await anyo.recommend(history=[example["item_id"]])
                example["request_id"] = answered.json()["request_id"]
            address = path.replace("{user_id}", "u-1").replace("{item_id}", "item-0003")
            sent_as = {"json": example} if kind == "application/json" else {"content": example}
            answer = await anyo.client.request(method.upper(), address, headers={"content-type": kind}, **sent_as)
            assert answer.status_code == 200, (path, example, answer.text)
            sent += 1
        assert sent == 11
