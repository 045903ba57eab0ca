"""What the page shows by itself and in its views: an example, a race, the time, the artifact, the same as code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
from axe_core_python.base import AXE_SCRIPT

from testing.browser import Browser, count, texts
from testing.running import Process, process

MOST_BYTES = 300_000
SHOWN = "const b = document.querySelector({!r}).getBoundingClientRect(); b.height > 0 && b.bottom <= innerHeight"


def first_view(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.wait_for(count("#items li") + " == 10 && " + count("#results li") + " == 20", "an example and its answer")


def is_seen(browser: Browser, selector: str) -> bool:
    return bool(browser.evaluate("{ " + SHOWN.format(selector) + " }"))


def violations(browser: Browser) -> list[Any]:
    browser.evaluate(AXE_SCRIPT + "; 0")
    found = browser.evaluate("axe.run().then(found => found.violations.map(v => [v.id, v.nodes.map(n => n.html)]))")
    return list(found)


def test_the_first_view_says_what_this_is_and_shows_an_example_already(browser: Browser, server: Process) -> None:
    for width, height, scheme in ((1280, 800, "light"), (390, 844, "dark")):
        browser.size(width, height)
        browser.scheme(scheme)
        first_view(browser, server.url)
        seen = ("#lead", "#history li:last-child", "#items li:first-child", "#race-go")
        assert [each for each in seen if not is_seen(browser, each)] == []
        assert violations(browser) == []
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out sideways"
    assert browser.evaluate("performance.getEntriesByType('resource').map(e => new URL(e.name).origin)"
                            ".every(origin => origin === location.origin)")  # fmt: skip
    assert len(httpx.get(server.url).content) <= MOST_BYTES
    assert browser.log == []


def test_an_example_holds_its_last_item_back_and_says_where_it_was_found(browser: Browser, server: Process) -> None:
    first_view(browser, server.url)
    example = max(httpx.get(server.url + "/artifacts").json()["items"][0]["examples"], key=len)
    history = browser.evaluate("state.history.map(item => item.id)")
    assert history == example[-6:-1] and browser.evaluate("state.held.id") == example[-1]
    items = httpx.post(server.url + "/recommend", json={"history": history, "k": 100}).json()["items"]
    ranks = {item["item_id"]: item["rank"] for item in items}
    browser.evaluate("{ const k = document.querySelector('#k'); k.value = 100; k.dispatchEvent(new Event('input')); }")
    browser.wait_for(count("#items li") + " == 100", "more answers")
    said = texts(browser, "#held")[0]
    assert (f"place {ranks[example[-1]]} of" in said) if example[-1] in ranks else ("not among" in said)
    assert browser.evaluate(count("#items .held")) == (example[-1] in ranks)

    browser.click("#history li:nth-child(2) .move")
    browser.wait_for("state.history[0].id === " + json.dumps(history[1]), "another order")
    browser.wait_for("document.querySelector('#held').hidden", "the end of the example: it is no longer what came next")
    address = browser.evaluate("location.href")
    browser.click("#undo")
    browser.wait_for("state.history[0].id === " + json.dumps(history[0]), "the old order")
    browser.open("about:blank")
    browser.open(address)
    browser.wait_for(count("#items li") + " == 100", "what the address asks for")
    assert browser.evaluate("state.history.map(item => item.id)") == [history[1], history[0], *history[2:]]


def test_a_race_shows_what_is_written_and_medians_on_one_axis(browser: Browser, server: Process) -> None:
    first_view(browser, server.url)
    browser.click("#race-go")
    browser.wait_for("document.querySelector('#race-state').textContent.startsWith('time in the service')", "medians")
    dense, written = browser.evaluate("[...document.querySelectorAll('.lane .time')].map(e => e.textContent)")
    assert dense.startswith("median of 5: ") and "times as long" in written and "% of the items in both" in written
    ask = {"history": browser.evaluate("state.history.map(item => item.id)")}
    answer = httpx.post(server.url + "/recommend/generative", json=ask).json()
    assert texts(browser, "#sides > div:last-child .title") == [item["title"] for item in answer["items"]]
    assert f"{answer['tokens']['new']} written" in texts(browser, "#sides > div:last-child h3")[0]
    wrong = next(text for text in answer["generated"] if not text["valid"])
    assert any(wrong["text"] in line for line in texts(browser, "#sides > div:last-child .meta"))
    browser.evaluate("state.writers[0].name = 'of another catalog'; 0")
    browser.click("#race")
    browser.wait_for("document.querySelector('#race-note').textContent.includes('of another catalog')", "the error")
    assert browser.evaluate("document.querySelector('#note').hidden"), "the recommendations are right"
    browser.click("#items li button:last-child")  # another history: what was measured is no longer true of it
    browser.wait_for(count("#lanes .lane") + " == 0", "the old race to go")


def test_views_show_time_batches_the_artifact_and_the_request_as_code(browser: Browser, server: Process) -> None:
    first_view(browser, server.url)
    browser.click("#tab-time")
    browser.click("#burst")
    browser.wait_for("!document.querySelector('#burst-table').hidden", "two rows")
    alone, together = (float(text) for text in texts(browser, "#burst-table td:last-child"))
    assert alone == 1 and together >= 1
    assert browser.evaluate(count("#last i")) == 49
    browser.click("#tab-artifact")
    browser.wait_for(count("#artifact-cards table") + " == 2", "both artifacts")
    assert "fake-recipe" in texts(browser, "#artifact-cards td")
    browser.click("#tab-code")
    curl, _, script, shown = texts(browser, "pre")
    ask = json.loads(re.findall(r"-d '(.*)'$", curl)[0])
    assert httpx.post(server.url + "/recommend", json=ask).json()["items"] == json.loads(shown)["items"]
    found = browser.evaluate(f"(async () => {{ {script} return answer.items.length; }})()")
    assert found == 10
    assert violations(browser) == []
    assert browser.log == []


def test_a_new_item_is_stored_and_seen_among_the_answers(browser: Browser, tmp_path: Path) -> None:
    with process(tmp_path, item_store=f"sqlite:///{tmp_path}/items.sqlite") as live:
        first_view(browser, live.url)
        browser.click("#items li .like")
        browser.wait_for("document.querySelector('#found').textContent.startsWith('most like')", "similar items")
        browser.evaluate("document.querySelector('#new').open = true")
        browser.type("#new-id", "n/1")
        browser.type("#new-title", "A Lighthouse")
        browser.click("#new-add")
        browser.wait_for("!document.querySelector('#new-note').hidden", "that a key is needed")
        browser.type("#new-key", live.admin_key or "")
        browser.click("#new-add")
        browser.wait_for("document.querySelector('#held').textContent.includes('A Lighthouse')", "the new item")
        assert httpx.get(live.url + "/items/n%2F1").json()["title"] == "A Lighthouse"
        assert live.admin_key not in browser.evaluate("location.href")
