"""The Python client against the real service: what it reads, what it raises, when it sends again."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from anyo_client import (
    AnyoError,
    AsyncClient,
    Client,
    NotReachedError,
    Retries,
    Step,
    WrittenRecommendation,
    answers,
    calls,
)
from anyo_client.routes import Route, Routes
from service.http import schemas
from service.http.app import create_app
from testing.fake_parts import make_parts
from testing.fake_writer import make_generative_parts
from testing.running import Process, Running, process, running

HISTORY = ["item-0003", "item-0050"]
SCHEMAS = {
    answers.Recommendation: schemas.RecommendAnswer,
    answers.WrittenRecommendation: schemas.GenerativeAnswer,
    answers.RecommendedItem: schemas.RankedCandidate,
    answers.Ranking: schemas.RankAnswer,
    answers.Explanation: schemas.ExplanationAnswer,
    answers.Similar: schemas.SimilarAnswer,
    answers.Item: schemas.Item,
    answers.SearchPage: schemas.ItemList,
    answers.User: schemas.UserAnswer,
    answers.Appended: schemas.AppendAnswer,
    answers.Feedback: schemas.FeedbackAnswer,
    answers.Artifact: schemas.ArtifactDetail,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with process(tmp_path_factory.mktemp("server")) as started:
        yield started


def client_of(service: Running) -> AsyncClient:
    return AsyncClient("http://localhost", transport=httpx.ASGITransport(create_app(service.service)))


def public(client: type) -> dict[str, list[str]]:
    methods = inspect.getmembers(client, inspect.isfunction)
    return {name: list(inspect.signature(each).parameters) for name, each in methods if not name.startswith("_")}


def test_both_clients_have_the_same_methods() -> None:
    assert public(Client) == public(AsyncClient)
    assert {"recommend", "artifacts", "stream"} < set(public(Client))


def test_methods_have_the_arguments_of_their_call() -> None:
    with Client("http://localhost") as anyo:
        assert inspect.signature(anyo.search) == inspect.signature(calls.search)
        assert inspect.getdoc(anyo.search) == inspect.getdoc(calls.search)
        with pytest.raises(TypeError, match="querry"):
            anyo.search(querry="tea")  # type: ignore[call-arg]


def test_every_call_is_a_method() -> None:
    made = {
        name for name, each in inspect.getmembers(calls, inspect.isfunction) if "-> Call[" in inspect.getsource(each)
    }
    assert made == {name for name, each in vars(Routes).items() if isinstance(each, Route)}


@pytest.mark.parametrize("model", SCHEMAS, ids=lambda model: model.__name__)
def test_answers_have_fields_that_the_service_describes(model: Any) -> None:
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    described = SCHEMAS[model].model_fields
    assert set(model.model_fields) <= set(described) | {"explanation"}
    assert {name for name in required if name not in described} == set()


def test_every_method_of_the_blocking_client(server: Process) -> None:
    with Client(server.url) as anyo:
        found = anyo.recommend([*HISTORY, {"title": "A thing"}], k=4, explain=True, categories=["mystery"])
        assert len(found.items) == 4 and found.explanation is not None
        assert [each.item_id for each in found.explanation.history][-1] is None
        plain = httpx.post(server.url + "/recommend", json={"history": HISTORY}).json()
        assert [item.item_id for item in anyo.recommend(HISTORY).items] == [item["item_id"] for item in plain["items"]]
        assert anyo.taken(found.request_id, found.items[1].item_id or "").rank == 2

        ranked = anyo.rank(HISTORY, ["item-0001", "item-0002", "none"])
        assert len(ranked.items) == 2 and ranked.unknown_candidates == ["none"]
        assert len(anyo.similar("item-0003", k=5).items) == 5
        assert [item.rank for item in anyo.popular(k=2, category="travel").items] == [1, 2]

        shown = {"fields": ["categories"]}
        *_, streamed = anyo.stream(HISTORY, k=2, **shown)
        assert isinstance(streamed, WrittenRecommendation)
        for answer in (
            anyo.recommend(HISTORY, k=2, **shown), anyo.generate(HISTORY, k=2, **shown), streamed,
            anyo.rank(HISTORY, ["item-0001", "item-0002"], **shown), anyo.similar("item-0003", k=2, **shown),
            anyo.popular(k=2, **shown),
        ):  # fmt: skip
            assert [item.categories for item in answer.items] == [
                anyo.item(item.item_id or "").categories for item in answer.items
            ]
        assert found.items[0].categories is None, "not asked for"
        assert anyo.search("TITLE 177").items == [anyo.item("item-0177")]
        assert anyo.append("a/b ü", HISTORY).stored == 2
        assert [event.item_id for event in anyo.user("a/b ü").events] == HISTORY

        assert [each.kind for each in anyo.artifacts()] == ["dense", "generative"]
        assert anyo.artifact("fake").metrics == {}
        *steps, last = anyo.stream(HISTORY, k=3, beams=2)
        assert steps and all(isinstance(step, Step) for step in steps)
        assert isinstance(last, WrittenRecommendation) and last.generated[0].text.startswith(steps[-1].text)
        assert anyo.generate(HISTORY, k=3, beams=2).items == last.items


def test_a_refusal_has_its_code_and_field_and_is_not_sent_again(server: Process) -> None:
    with Client(server.url) as anyo:
        for ask in (lambda: anyo.recommend(HISTORY, artifact="none"), lambda: [*anyo.stream(HISTORY, artifact="none")]):
            with pytest.raises(AnyoError, match="artifact 'none' is not loaded") as refused:
                ask()
            assert (refused.value.status, refused.value.code) == (404, "unknown_artifact")
            assert refused.value.field == "artifact" and refused.value.request_id


async def test_the_client_for_asyncio_waits_as_long_as_it_was_told() -> None:
    async with running(rate_limit=1.0, rate_limit_burst=1) as service:
        gate = httpx.ASGITransport(create_app(service.service))
        anyo = AsyncClient("http://localhost", transport=gate)
        once = AsyncClient("http://localhost", transport=gate, retries=Retries(times=0))
        await anyo.recommend(HISTORY)
        with pytest.raises(AnyoError) as refused:
            await once.recommend(HISTORY)
        assert refused.value.status == 429 and refused.value.retry_after == 1
        assert Retries().wait(refused.value, done=1, waited_s=0) == 1
        assert Retries(longest_s=0.5).wait(refused.value, done=1, waited_s=0) is None, "longer than it may wait"
        assert len((await anyo.recommend(HISTORY)).items) == 10, "after the second that it was told"
        await anyo.close()
        await once.close()


async def test_streams_end_where_the_service_fails_and_steps_come_first() -> None:
    parts = make_parts()
    async with running(parts, generative=make_generative_parts(parts)) as service, client_of(service) as anyo:
        got = [event async for event in anyo.stream(HISTORY, k=2)]
        assert isinstance(got[0], Step) and isinstance(got[-1], WrittenRecommendation)
        service.writer.poison = service.parts.catalog.row(HISTORY[0])
        with pytest.raises(AnyoError):
            await anyo.generate(HISTORY)


def test_no_answer_is_sent_again_and_then_said() -> None:
    tries = []

    def refuse(request: httpx.Request) -> httpx.Response:
        tries.append(request)
        raise httpx.ConnectError("refused")

    retries = Retries(times=2, first_wait_s=0.001)
    anyo = Client("http://localhost", transport=httpx.MockTransport(refuse), retries=retries)
    with anyo, pytest.raises(NotReachedError, match="ConnectError: refused"):
        anyo.append("u", ["item-0001"])
    bodies = {request.content for request in tries}
    assert len(tries) == 3 and len(bodies) == 1, "with the same ids, so that it is stored once"


def test_an_error_page_of_a_balancer_is_an_error_too() -> None:
    page = httpx.Response(502, content=b"<html>bad gateway</html>")
    anyo = Client("http://localhost", transport=httpx.MockTransport(lambda request: page))
    with anyo, pytest.raises(AnyoError, match="status 502") as refused:
        anyo.artifacts()
    assert refused.value.code == "unknown"
