"""What the page shows by itself and in its views: an example, a race, the time, the artifact, the same as code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
from axe_core_python.base import AXE_SCRIPT

from service.http.routes import pages
from testing.browser import Browser, count, texts
from testing.running import Process, process

MOST_BYTES = 300_000
PAGES = Path(pages.__file__).parent.parent / "page"
WORDS = json.loads((PAGES / "words.json").read_text())
ENGLISH_ONLY = {text["en"] for text in WORDS.values() if text["en"] != text["ja"]} - {WORDS["other_language"]["ja"]}
# Keys that the script puts together, of the names of stages, sources, figures, facts and reasons.
MADE = {
    start: [key.removeprefix(start) for key in WORDS if key.startswith(start)]
    for start in ("stage_", "source_", "live_", "fact_", "no_sentence_")
}
SHOWN = "const b = document.querySelector({!r}).getBoundingClientRect(); b.height > 0 && b.bottom <= innerHeight"


def first_view(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.wait_for(count("#items li") + " == 10 && " + count("#results li") + " == 20", "an example and its answer")


def is_seen(browser: Browser, selector: str) -> bool:
    return bool(browser.evaluate("{ " + SHOWN.format(selector) + " }"))


def is_tall(browser: Browser, selector: str) -> bool:
    return bool(browser.evaluate(f"document.querySelector({selector!r}).getBoundingClientRect().height > 300"))


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
    reads = httpx.get(server.url + "/artifacts").json()["items"][0]["reads"]
    assert texts(browser, "#lead") == [WORDS["lead" if "text" in reads else "lead_ids"]["en"]]
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
    assert not browser.evaluate("document.querySelector('#whole-answer').open"), "long, so folded at first"
    assert violations(browser) == []
    browser.click("#whole-answer summary")
    assert is_tall(browser, "#whole-answer pre") and violations(browser) == []
    browser.evaluate("document.querySelector('#why').click()")
    browser.wait_for(count("#items .why") + " > 0", "the next answer")
    assert is_tall(browser, "#whole-answer pre"), "stays unfolded"
    assert browser.log == []


def metric(page: str, name: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if re.match(rf"{name}[ {{]", line))


def test_live_figures_are_those_of_the_metrics_and_stop_when_nobody_looks(browser: Browser, server: Process) -> None:
    first_view(browser, server.url)
    browser.evaluate("window.looks = 0; const ask = fetch; window.fetch = (path, ...more) => {"
                     " looks += path === '/metrics'; return ask(path, ...more); }; 0")  # fmt: skip
    browser.click("#tab-live")
    browser.wait_for("live.last !== null", "a first look")
    for number in range(20):
        httpx.post(server.url + "/recommend", json={"history": [f"item-{number % 4:04}"]}).raise_for_status()
    browser.wait_for("live.points.some(point => point.hits > 0)", "a second look")
    point = browser.evaluate("live.points.find(point => point.hits > 0)")
    assert point["rate"] > 0 and 0 < point["p50"] <= point["p99"] and point["hits"] <= 1 and point["queue"] == 0
    assert browser.evaluate(count("#live svg polyline")) >= 4
    # Over all of the time, the page reads of the metrics what they say.
    whole = browser.evaluate("metrics(LIVE_NAMES).then(s => figures({ at: 1000, series: s }, { at: 0, series: [] }))")
    said = httpx.get(server.url + "/metrics").text
    batches = metric(said, "anyo_batch_requests_sum") / metric(said, "anyo_batch_requests_count")
    assert whole["batch"] == batches
    assert violations(browser) == []
    hidden = "Object.defineProperty(document, 'hidden', {{ configurable: true, get: () => {} }})"
    hidden += "; document.dispatchEvent(new Event('visibilitychange')); 0"
    away = {"another view": "#tab-time", "another page": hidden.format("true")}
    for there, back in zip(away.values(), ("#tab-live", hidden.format("false")), strict=True):
        before = 0
        for act, stops in ((there, True), (back, False)):
            browser.click(act) if act.startswith("#") else browser.evaluate(act)
            assert browser.evaluate("live.timer === null") == stops
            if stops:
                before = browser.evaluate("looks")
                browser.evaluate("new Promise(done => setTimeout(done, 1.5 * POLL_MS))")
                assert browser.evaluate("looks") == before
        browser.wait_for(f"looks > {before}", "figures again")
    assert browser.log == []


def test_a_stored_user_can_be_forgotten_and_what_was_taken_reported(browser: Browser, server: Process) -> None:
    user = f"{server.url}/users/leaver"
    httpx.post(user + "/events", json={"events": [{"item_id": "item-0003"}]}).raise_for_status()
    browser.open(server.url + "/#user=leaver&view=users")
    browser.wait_for("document.querySelector('#user-events').textContent.includes('1 stored')", "the stored history")
    browser.wait_for(count("#items li") + " == 10", "an answer for the stored user")
    browser.click("#items li:nth-child(3) .taken")
    browser.wait_for("document.querySelector('#feedback-said').textContent.includes('at place 3')", "the report")
    browser.wait_for(count("#feedback-table tbody tr") + " > 0", "the hit rate")
    summary = httpx.get(server.url + "/feedback/summary").json()["items"][0]
    shown = texts(browser, "#feedback-table tbody tr:first-child td")
    assert shown[1] == str(summary["rated"]) and shown[2].startswith(f"{100 * summary['hit_rate']['value']:.1f} %")
    browser.evaluate("window.confirm = question => { window.asked = question; return false; }; 0")
    browser.click("#user-forget")
    assert "leaver" in browser.evaluate("window.asked") and httpx.get(user).status_code == 200, "not without a yes"
    browser.evaluate("window.confirm = () => true; 0")
    browser.click("#user-forget")
    browser.wait_for("document.querySelector('#user-forget').disabled", "nobody chosen")
    assert httpx.get(user).status_code == 404
    assert browser.log == []


def test_the_page_is_in_japanese_where_the_address_or_the_browser_asks_for_it(
    browser: Browser, server: Process
) -> None:
    browser.size(390, 844)
    browser.open(server.url + "/?lang=ja")
    browser.wait_for(count("#items li") + " == 10 && " + count("#results li") + " == 20", "an example and its answer")
    assert browser.evaluate("[document.documentElement.lang, document.title]") == ["ja", WORDS["title"]["ja"]]
    assert browser.evaluate("location.search") == "?lang=ja", "kept when the address changes"
    assert [each for each in ("#history li:last-child", "#items li:first-child") if not is_seen(browser, each)] == []
    chosen = {each: browser.evaluate(f"choose([null, '{each}'])") for each in ("ja-JP", "fr", "en-GB")}
    assert chosen == {"ja-JP": "ja", "fr": "en", "en-GB": "en"}
    english = [each for each in texts(browser, "[data-t]") if each and each in ENGLISH_ONLY]
    assert english == []
    assert violations(browser) == []
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out sideways"
    assert browser.evaluate("(tabs => tabs.scrollWidth <= tabs.clientWidth)(document.querySelector('#tabs'))")
    browser.click("#language")
    browser.wait_for("document.documentElement?.lang === 'en' && " + count("#items li") + " == 10", "English again")
    assert browser.evaluate("state.history.length") == 5, "what was asked stays"
    assert browser.log == []


def test_every_text_has_both_languages_and_every_key_is_used() -> None:
    source = (PAGES / "index.html").read_text()
    for key, texts_of in WORDS.items():
        assert set(texts_of) == {"en", "ja"} and all(texts_of.values()), key
        named = [sorted(re.findall(r"\{(\w+)\}", text)) for text in texts_of.values()]
        assert named[0] == named[1], key
    used = set(re.findall(r'data-t(?:-\w+)?="(\w+)"', source)) | set(re.findall(r'\bt\("(\w+)"', source))
    for choice in re.findall(r"\bt\(([^()]*\?[^()]*)[,)]", source):
        used |= set(re.findall(r'"(\w+)"', choice.split("?", 1)[1]))
    made = {f"{start}{key}" for start, keys in MADE.items() for key in keys}
    assert {key for key in used if not key.endswith("_")} | made == WORDS.keys()


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
