"""The sentence of an explanation on the page: a real language model, a real service, a real browser."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from testing.browser import Browser, count, texts
from testing.running import ROOT
from tests.service.recommend.test_sentences import artifacts

__all__ = ["artifacts"]  # a fixture


@pytest.fixture
def url(artifacts: tuple[Path, Path], tmp_path: Path) -> Iterator[str]:
    """Address of a service over a dense artifact and a ranker around a language model."""
    command = [sys.executable, "-m", "service", *map(str, artifacts), "--port", "0"]
    patient = {"ANYO_SECOND_STAGE_MS": "20000", "ANYO_DEADLINE_MS": "30000", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--store", f"sqlite:///{tmp_path}/h.sqlite"], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env={**os.environ, **patient},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        curl = next(line for line in process.stdout if line.startswith("curl "))
        try:
            yield next(word for word in curl.split() if word.startswith("http")).removesuffix("/recommend")
        finally:
            process.kill()


def test_the_sentence_is_shown_below_the_first_item_with_how_it_was_made(browser: Browser, url: str) -> None:
    browser.size(390, 844)
    browser.open(url + "/#k=10")
    browser.wait_for(count("#results li") + " == 20", "items")
    for number in (1, 2):
        browser.evaluate(f"document.querySelectorAll('#results li button')[{number}].click()")
        browser.wait_for(count("#history li") + f" == {number}", "the item in the history")
    browser.wait_for(count("#items li") + " == 10", "recommendations")
    assert browser.evaluate(count(".sentence")) == 0
    browser.click("#why")
    browser.wait_for(count("#items .sentence") + " > 0", "the sentence")
    ask = {"history": browser.evaluate("state.history.map(item => item.id)"), "explain": True}
    answer = httpx.post(url + "/recommend", json=ask, timeout=30).json()
    said = answer["explanation"]["sentence"]
    assert said["item_id"] == answer["items"][0]["item_id"] and said["text"].endswith(".")
    label = f"{said['text']} (sentence by asked, constrained decoding)"
    assert texts(browser, "#items .sentence") == texts(browser, "#items li:first-child .sentence") == [label]
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out sideways"
    assert browser.log == []
