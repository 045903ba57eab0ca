"""Does an item ever come out that may not? Generative requests of every kind, whose answers are checked one by one.

    python -m benchmarks.generation.invalid_items DENSE GENERATIVE [--requests 10000]     real artifacts, one server
    python -m benchmarks.generation.invalid_items DENSE                                   an untrained `small` writes
    python -m benchmarks.generation.invalid_items                                         parts made in memory: the \
        service alone

An answer is wrong if it holds an item that is not in the catalog, one twice, one that was seen, excluded or of another
category, or fewer than `k` where more are eligible; or if a text called valid is no title. Several clients
ask at a time, so that batches are mixed. Prints the wrong answers; the last line is one JSON object; the exit code is
1 if there was any, or if a request had no answer.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.lib.results import ResultFile
from benchmarks.lib.server import PATIENCE_S, Server

BEAMS, HISTORY, SEVERAL, NO_ANSWER = 8, 12, 400, 0
SHOWN = 20
PROGRESS = 500

RESULT = ResultFile(__file__, __doc__)


@dataclass
class Found:
    """Outcome of all requests."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    items: int = 0
    filled: int = 0
    texts: int = 0
    valid: int = 0
    tokens: int = 0


async def catalog_of(client: httpx.AsyncClient, artifact: str) -> dict[str, dict[str, Any]]:
    """Return every item of a loaded artifact by its id."""
    items: dict[str, dict[str, Any]] = {}
    offset: int | None = 0
    while offset is not None:
        page = (await client.get("/items", params={"artifact": artifact, "limit": 200, "offset": offset})).json()
        items |= {item["item_id"]: item for item in page["items"]}
        offset = page["next"]
    return items


def made_up(rng: random.Random, ids: list[str], categories: list[str], most_beams: int) -> dict[str, Any]:
    """Return a request with everything that one can ask for."""
    return {
        "history": rng.choices(ids, k=rng.randint(1, HISTORY)),
        "k": rng.choice((1, 5, 10, 10, 10, 50)),
        "exclude_seen": rng.random() < 0.8,
        "exclude": rng.choices(ids, k=rng.choice((0, 0, 0, 5, min(SEVERAL, len(ids) // 2)))),
        "categories": rng.sample(categories, rng.choice((0, 0, 1, min(2, len(categories))))) if categories else [],
        "beams": rng.randint(1, most_beams),
    }


def mistakes(ask: dict[str, Any], answer: dict[str, Any], items: dict[str, dict[str, Any]]) -> list[str]:
    """Return what is wrong with an answer."""
    shown = [item["item_id"] for item in answer["items"]]
    never = {*ask["exclude"], *(ask["history"] if ask["exclude_seen"] else ())}
    wanted = set(ask["categories"])
    eligible = {
        item_id
        for item_id, item in items.items()
        if item_id not in never and (not wanted or wanted & set(item["categories"]))
    }
    found = [f"{item_id} may not come out" for item_id in shown if item_id not in eligible]
    if len(set(shown)) != len(shown):
        found.append("an item came twice")
    if len(shown) != min(ask["k"], len(eligible)):
        found.append(f"{len(shown)} items for k = {ask['k']} and {len(eligible)} eligible")
    for text in answer["generated"]:
        if text["valid"] and (text["item_id"] not in items or text["distance"] not in (0, None)):
            found.append(f"text {text['text']!r} is called valid and stands for {text['item_id']}")
    return found


async def run(url: str, options: argparse.Namespace) -> tuple[Found, str]:
    """Send all requests; returns what came of them, and whose answers they are."""
    rng, found = random.Random(options.seed), Found()
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        loaded = (await client.get("/artifacts")).json()["items"]
        row = next(each for each in loaded if each["kind"] == "generative")
        items = await catalog_of(client, row["name"])
        asks = iter([
            made_up(rng, list(items), row["categories"], min(BEAMS, row["writes"]["limit"]["beams"]))
            for _ in range(options.requests)
        ])  # fmt: skip

        async def client_loop() -> None:
            for ask in asks:
                answer = await asked(client, ask)
                status = NO_ANSWER if answer is None else answer.status_code
                found.statuses[status] += 1
                if answer is None or status != 200:
                    continue
                note(found, ask, answer.json(), items)
                if sum(found.statuses.values()) % PROGRESS == 0:
                    print(f"{sum(found.statuses.values())} of {options.requests}", file=sys.stderr, flush=True)

        await asyncio.gather(*(client_loop() for _ in range(options.clients)))
    return found, f"{row['name']} ({row['recipe']}, {len(items)} items)"


async def asked(client: httpx.AsyncClient, ask: dict[str, Any]) -> httpx.Response | None:
    """Return the answer, asked again as long as the queue is full; None where there is none."""
    while True:
        try:
            answer = await client.post("/recommend/generative", json=ask)
        except httpx.HTTPError:
            return None
        if answer.status_code != 429:
            return answer
        await asyncio.sleep(int(answer.headers["retry-after"]))


def note(found: Found, ask: dict[str, Any], answer: dict[str, Any], items: dict[str, dict[str, Any]]) -> None:
    """Count an answer and what is wrong with it."""
    found.items += len(answer["items"])
    found.filled += answer["filled"]
    found.texts += len(answer["generated"])
    found.valid += sum(text["valid"] for text in answer["generated"])
    found.tokens += answer["tokens"]["new"]
    found.wrong += [f"{mistake}: {ask}" for mistake in mistakes(ask, answer, items)]


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dense", type=Path, nargs="?")
    parser.add_argument("generative", type=Path, nargs="?")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    RESULT.add_option(parser)
    options = parser.parse_args()
    started = time.monotonic()
    program = "service" if options.generative else "benchmarks.lib.small_generative"
    others = [options.generative] if options.generative else []
    settings = {"generative_batch_requests": 8, "generative_deadline_ms": 600_000}
    with Server(options.dense, settings, others=others, program=program) as server:
        found, answered_by = asyncio.run(run(server.url, options))
    for line in found.wrong[:SHOWN]:
        print(line)
    unanswered = sum(count for status, count in found.statuses.items() if status != 200)
    RESULT.publish({
        "artifact": answered_by, "requests": options.requests, "statuses": dict(sorted(found.statuses.items())),
        "wrong": len(found.wrong), "items": found.items, "filled": found.filled, "texts": found.texts,
        "invalid_texts": found.texts - found.valid, "tokens": found.tokens,
        "seconds": round(time.monotonic() - started, 1),
    }, options.result)  # fmt: skip
    return 1 if found.wrong or unanswered else 0


if __name__ == "__main__":
    sys.exit(main())
