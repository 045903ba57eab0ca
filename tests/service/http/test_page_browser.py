"""The page in a real browser: a person composes a history and sees recommendations, on a desk and on a phone."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from service.keys import new_key
from testing.browser import Browser, count, texts
from testing.running import Process, process

EVIL = '<img src=x onerror="document.title=1"><script>document.title=2</script>'


OWN = "/#k=10"
"""An address that asks for something, so that no example is taken."""


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desk", "phone"])
def test_compose_a_history_and_see_recommendations(browser: Browser, server: Process, width: int, height: int) -> None:
    user = f"visitor {width}/ü"
    browser.size(width, height)
    browser.open(server.url + OWN)
    browser.wait_for(count("#results li") + " == 20", "the most popular items")
    browser.type("#query", "TITLE 177")
    browser.wait_for(count("#results li") + " == 1", "the item that was searched for")
    browser.click("#results li button")
    browser.wait_for(count("#items li") + " == 10", "recommendations")
    assert texts(browser, "#history .title") == ["Title 177 of the mystery shelf"]

    shown = texts(browser, "#items .title")
    answer = httpx.post(server.url + "/recommend", json={"history": ["item-0177"]}).json()
    assert shown == [item["title"] for item in answer["items"]]
    categories = texts(browser, "#items .meta")
    assert categories == [f"{item['item_id']} · {item['title'].split()[4]}" for item in answer["items"]]
    assert texts(browser, "#history .meta") == ["item-0177 · mystery"]
    scores = texts(browser, "#items .score")
    assert scores == [f"{item['score']:.4f}" for item in answer["items"]]
    assert "search" in "".join(texts(browser, "#legend span"))

    browser.click("#items li button:last-child")
    browser.wait_for(count("#history li") + " == 2", "the recommended item in the history")
    browser.wait_for(f"document.querySelector('#items .title').textContent != {shown[0]!r}", "a new answer")
    browser.click("#categories .chip")
    browser.wait_for(
        "[...document.querySelectorAll('#items .title')].every(e => e.textContent.includes('cooking'))", "the filter"
    )
    browser.type("#free-title", EVIL)
    browser.click("#free-add")
    browser.wait_for(count("#history li") + " == 3", "the free title")
    assert texts(browser, "#history .title")[2] == EVIL, "shown as the text it is"
    assert browser.evaluate(count("#history img") + " + " + count("#history script")) == 0

    browser.click("#tab-users")
    browser.type("#user", user)
    browser.click("#user-save")
    browser.wait_for("document.querySelector('#user-state').textContent.includes('chosen')", "the user")
    browser.wait_for("document.querySelector('#user-events').textContent.includes('2 stored')", "the stored history")
    browser.wait_for(count("#items li") + " == 10", "an answer for the stored user")
    assert any(row["user_id"] == user for row in httpx.get(server.url + "/users").json()["items"])

    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out sideways"
    assert browser.evaluate("document.title") == "anyo: what next?"
    assert browser.log == []


def test_why_an_item_is_recommended_is_said_below_it(browser: Browser, server: Process) -> None:
    browser.size(390, 844)
    browser.open(server.url + OWN)
    browser.wait_for(count("#results li") + " == 20", "items")
    for number in (1, 2):
        browser.evaluate(f"document.querySelectorAll('#results li button')[{number}].click()")
        browser.wait_for(count("#history li") + f" == {number}", "the item in the history")
    browser.wait_for(count("#items li") + " == 10", "recommendations")
    assert browser.evaluate(count(".why")) == 0
    browser.click("#why")
    browser.wait_for(count("#items .why") + " == 20", "two reasons below each item")
    ask = {"history": browser.evaluate("state.history.map(item => item.id)"), "explain": True}
    found = httpx.post(server.url + "/recommend", json=ask).json()["explanation"]
    largest = max(zip(found["influence"]["values"][0], found["history"], strict=True), key=lambda each: abs(each[0]))
    nearest = found["nearest"]["values"][0]
    first, second = texts(browser, "#items li:first-child .why")
    assert first.startswith(f"Leaving one out: {largest[1]['title']} ") and f"{abs(largest[0]):.3f}" in first
    assert found["history"][nearest["place"]]["title"] in second and f"{nearest['cosine']:.2f}" in second
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out sideways"
    assert browser.log == []


def test_an_error_is_shown_and_the_page_goes_on(browser: Browser, server: Process) -> None:
    browser.open(server.url + OWN)
    browser.wait_for(count("#results li") + " == 20", "items")
    browser.click("#tab-users")
    browser.evaluate("""(() => { const k = document.querySelector('#user'); k.value = 'nobody at all';
        document.querySelector('#user-use').click(); })()""")
    browser.wait_for("document.querySelector('#source').textContent == 'popular items'", "popular items")
    browser.wait_for("document.querySelector('#user-events').textContent.includes('Nothing is stored')", "a word on it")
    browser.click("#user-none")
    browser.wait_for("document.querySelector('#source').hidden", "no answer without a question")
    browser.click("#user-save")
    browser.wait_for("!document.querySelector('#user-note').hidden", "what is missing")


def test_the_focus_stays_where_entries_come_and_go(browser: Browser, server: Process) -> None:
    browser.open(server.url + OWN)
    browser.wait_for(count("#results li") + " == 20", "items")
    focus = "document.activeElement.closest('#history, #items, #results, #query')?.id || document.activeElement.tagName"
    for number in range(1, 4):
        browser.evaluate("document.querySelector('#results li button').focus(); document.activeElement.click()")
        browser.wait_for(count("#history li") + f" == {number}", "the item in the history")
    browser.wait_for(count("#items li") + " == 10", "recommendations")
    browser.evaluate("window.old = document.querySelector('#items li button:last-child'); old.focus(); old.click()")
    browser.wait_for("!old.isConnected", "a new answer")
    assert browser.evaluate(focus) == "items"
    for left in (3, 2, 1):
        browser.evaluate("document.querySelector('#history .remove').focus(); document.activeElement.click()")
        browser.wait_for(count("#history li") + f" == {left}", "the entry to go")
        assert browser.evaluate(focus) == "history"
    browser.evaluate("document.querySelector('#history .remove').focus(); document.activeElement.click()")
    browser.wait_for(count("#history li") + " == 0", "the last entry to go")
    assert browser.evaluate(focus) == "query"


def test_a_refusal_for_a_moment_is_said_and_tried_again(browser: Browser, tmp_path: Path) -> None:
    with process(tmp_path, rate_limit=0.25, rate_limit_burst=3) as slow:
        browser.open(slow.url + OWN)
        browser.wait_for(count("#results li") + " == 20", "items")
        for number in (1, 2):
            browser.click("#results li button")
            browser.wait_for(count("#history li") + f" == {number}", "the item in the history")
            if number == 1:
                browser.wait_for(count("#items li") + " == 10", "recommendations")
                browser.evaluate("window.old = document.querySelector('#items li')")
        said = "document.querySelector('#note').textContent"
        browser.wait_for(said + ".includes('trying again in')", "what is being done")
        assert "key" not in browser.evaluate(said)
        browser.wait_for("!old.isConnected && " + count("#items li") + " == 10", "the answer after all")
        assert browser.evaluate("document.querySelector('#note').hidden")


def test_a_service_that_is_away_looks_so_until_it_is_back(browser: Browser, server: Process) -> None:
    browser.open(server.url + OWN)
    browser.wait_for(count("#results li") + " == 20", "items")
    healthy = browser.evaluate("document.querySelector('#serving').textContent")
    browser.evaluate("window.right = fetch; window.fetch = async () => { throw new TypeError('Failed to fetch'); }; 0")
    browser.click("#results li button")
    browser.wait_for("document.querySelector('#serving').classList.contains('away')", "the header to tell")
    assert "cannot be reached" in browser.evaluate("document.querySelector('#serving').textContent")
    browser.evaluate("window.fetch = right; 0")
    browser.wait_for("!document.querySelector('#serving').classList.contains('away')", "the service to be back")
    assert browser.evaluate("document.querySelector('#serving').textContent") == healthy
    browser.wait_for(count("#items li") + " == 10", "the answer that could not be had before")
    assert browser.evaluate("document.querySelector('#note').hidden")


def test_an_api_key_opens_the_page_and_is_kept_in_memory_only(browser: Browser, tmp_path: Path) -> None:
    secret, digest = new_key()
    with process(tmp_path, api_keys=digest) as locked:
        browser.open(locked.url + OWN)
        browser.wait_for("document.querySelector('#serving').textContent.includes('key')", "what is missing")
        browser.type("#key", secret)
        browser.evaluate("document.querySelector('#key').blur()")
        browser.wait_for(count("#results li") + " == 20", "items")
        browser.click("#results li button")
        browser.wait_for(count("#items li") + " == 10", "recommendations")
        kept = "JSON.stringify([localStorage.length, sessionStorage.length, document.cookie, location.href])"
        assert secret not in browser.evaluate(kept) and browser.evaluate(kept).startswith('[0,0,""')


def test_the_page_needs_nothing_from_elsewhere(server: Process) -> None:
    answer = httpx.get(server.url)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    for forbidden in ('src="', "@import", "url(", "innerHTML", "insertAdjacentHTML", "document.write"):
        assert forbidden not in answer.text, forbidden


def test_the_description_is_shown_and_sends_requests_and_needs_no_other_host(browser: Browser, server: Process) -> None:
    browser.open(server.url + "/docs")
    described = httpx.get(server.url + "/openapi.json").json()["paths"]
    browser.wait_for(count(".opblock") + f" == {sum(map(len, described.values()))}", "every operation")
    browser.evaluate("document.querySelector('#operations-items-items .opblock-summary-control').click()")
    browser.wait_for(count("#operations-items-items .parameters") + " > 0", "the parameters of one")
    assert browser.log == []
    assert try_out(browser, "items-items").split()[0] == "200"
    hosts = browser.evaluate("performance.getEntriesByType('resource').map(entry => new URL(entry.name).origin)")
    assert len(hosts) >= 4 and set(hosts) == {server.url}
    browser.evaluate("document.querySelector('#operations-artifacts-set_traffic .opblock-summary-control').click()")
    refused = try_out(browser, "artifacts-set_traffic").split()[0]
    assert refused in ("401", "403"), "the page opens nothing without a key"


def try_out(browser: Browser, operation: str) -> str:
    """Send the example of an operation that the page shows; the status of the answer as shown."""
    for button in (".try-out__btn", ".execute"):
        found = f"document.querySelector('#operations-{operation} {button}')"
        browser.wait_for(f"!!{found}", button)
        browser.evaluate(f"{found}.click()")
    status = f"document.querySelector('#operations-{operation} .live-responses-table .response .response-col_status')"
    return str(browser.wait_for(f"{status}?.innerText", "an answer"))
