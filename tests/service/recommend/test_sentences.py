"""The sentence of an explanation over HTTP, with a language model that is loaded beside a dense artifact."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from modeling.generation.sentence import Sentence
from service.errors import DeadlineExceeded, InvalidInput, ModelError, Overloaded
from service.recommend.sentences import WrittenSentence, write_sentence
from testing.datasets import QUIET, SMALL, write_dataset
from testing.models import write_byte_level
from tests.service.recommend.test_ranking import Served, serving
from training.data.dataset import read_dataset
from training.recipes import get_recipe
from training.run import RunOptions, run

pytestmark = pytest.mark.asyncio(loop_scope="module")

HISTORY = [3, 14, 25, 7]
ZERO = ["optimizer.epochs=0", "method.answers=choices", "method.validation_users=4", "method.final_users=4"]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dense artifact, and a ranker around a random language model."""
    folder = tmp_path_factory.mktemp("said")
    dataset = read_dataset(write_dataset(folder / "ring", users=20, items=40))
    settings = [*ZERO, "history.limit=4", "method.candidates=4"]
    asked = get_recipe("tallrec", settings, backbone=str(write_byte_level(folder / "bytes")))
    for name, recipe in (("dense", get_recipe("sasrec", [*SMALL, "optimizer.epochs=1"])), ("asked", asked)):
        run(recipe, dataset, RunOptions(out=folder / name), QUIET)
    return folder / "dense", folder / "asked"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(artifacts: tuple[Path, Path]) -> AsyncIterator[Served]:
    async with serving(*artifacts, second_stage_ms=20_000, deadline_ms=30_000) as started:
        yield started


async def test_no_other_title_can_appear(both: Served) -> None:
    """For many histories: every title in quotation marks is the item's or one of the history that is listed."""
    catalog = both.service.recommender(None).catalog
    texts = set()
    for start in range(12):
        history = [(start + 3 * step) % len(catalog) for step in range(2 + start % 5)]
        answer = await both.recommend(history, k=3, explain=True)
        said, read = answer["explanation"]["sentence"], answer["explanation"]["history"]
        assert said["method"] == "constrained_decoding" and said["reason"] is None
        assert said["artifact"]["name"] == "asked" and said["item_id"] == answer["items"][0]["item_id"]
        named = [read[place]["title"] for place in said["named"]]
        allowed = {answer["items"][0]["title"], *named}
        assert set(re.findall("“(.*?)”", said["text"])) == allowed and 1 <= len(named) <= 2
        rest = re.sub("“.*?”", "", said["text"])
        assert not [row for row in range(len(catalog)) if catalog.titles[row] in rest]
        texts.add(said["text"])
        assert answer["degraded"] == []
    assert len(texts) > 4
    assert both.metric("anyo_sentences_total", result="generated") == 12


async def test_it_is_as_the_model_says_it_alone(both: Served) -> None:
    answer = await both.recommend(HISTORY, k=1, explain=True)
    writer = both.service.recommenders["asked"].engine.sentences  # type: ignore[union-attr]
    prompt = writer.prepare(answer["items"][0]["title"], [each["title"] for each in answer["explanation"]["history"]])
    sentence = writer.write(prompt)
    said = answer["explanation"]["sentence"]
    assert said["text"] == sentence.text and said["named"] == list(sentence.named)


async def test_without_a_language_model_the_answer_says_so(artifacts: tuple[Path, Path]) -> None:
    async with serving(artifacts[0]) as alone:
        answer = await alone.recommend(HISTORY, k=2, explain=True)
        said = answer["explanation"]["sentence"]
        assert said["text"] is None and said["reason"] == "no_language_model" and said["artifact"] is None
        assert said["named"] == [] and said["item_id"] is None and answer["degraded"] == []
        assert alone.metric("anyo_sentences_total", result="absent") == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [(DeadlineExceeded, "no_time"), (Overloaded, "busy"), (ModelError, "failed"), (InvalidInput, "failed")],
    ids=["late", "busy", "model", "input"],
)  # fmt: skip
async def test_what_prevents_it_is_said_and_the_rest_is_answered(
    both: Served, monkeypatch: pytest.MonkeyPatch, error: type[Any], reason: str
) -> None:
    left: list[float] = []

    async def say(work: Any, key: Any, deadline: float) -> Any:
        left.append(deadline - time.monotonic())
        raise error("a message")

    monkeypatch.setattr(both.service.recommenders["asked"].engine, "say", say)
    answer = await both.recommend(HISTORY, k=2, explain=True)
    said = answer["explanation"]["sentence"]
    assert said["text"] is None and said["reason"] == reason and said["artifact"]["name"] == "asked"
    assert answer["degraded"] == ["sentence"] and answer["explanation"]["influence"]["values"]
    assert len(answer["items"]) == 2 and left[0] <= 20, "it has the time of a stage"


async def test_a_sentence_without_something_to_name_and_about_what_was_withdrawn() -> None:
    class Silent:
        parts: Any = None

        async def say(self, item: str, history: Any, deadline: float) -> Sentence | None:
            return None if item in history else Sentence("a text", (0,))

    assert (await write_sentence(Silent(), 5, "a", ["a"], 0.0)).reason == "nothing_to_name"
    found = await write_sentence(Silent(), 5, "b", ["a"], 0.0)
    assert found.of([5, 6]) == found and found.text == "a text"
    assert found.of([6]) == WrittenSentence(5, reason="withdrawn")


async def test_the_rows_of_an_explanation_do_not_keep_its_own_sentence_out(artifacts: tuple[Path, Path]) -> None:
    """While 29 histories with one item left out wait for the device, with one more than the dense requests allowed."""
    async with serving(*artifacts, second_stage_ms=20_000, deadline_ms=30_000, generative_dense_waiting=1) as served:
        history = [row % 40 for row in range(30)]
        await served.recommend(history)  # its vector is kept, so the next request begins with the explanation
        dense, device = served.service.recommender(None).engine, served.service.registry.device
        with device.turn():
            asked = asyncio.create_task(served.recommend(history, explain=True))
            for _ in range(500):
                if device.dense_waiting() >= 10:
                    break
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert dense.load()[0] > 1 >= device.dense_requests()
        answer = await asked
        assert len(answer["explanation"]["influence"]["values"][0]) > 10
        assert answer["explanation"]["sentence"]["reason"] is None and answer["degraded"] == []
