"""What methods take when a service answers them: one request after the other in turn, and many clients at a time."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.generation.race_artifacts import COMPRESSED, DENSE, HISTORY, SHALLOW
from benchmarks.lib.load import Load, Pool, closed_loop, request
from training.data.splits import Split

RECOMMEND, GENERATE = "/recommend", "/recommend/generative"
GREEDY, FEW, MANY = 1, 4, 20
SETTINGS = {"user_cache_entries": "0", "deadline_ms": "300000", "generative_deadline_ms": "300000"}
READING, WRITING, FINDING = ("prefill", "forward"), ("decode",), ("ground", "search")
"""Stages of both kinds of answers, by what they are for."""


@dataclass(frozen=True)
class Way:
    """One method as it is asked.

    Attributes:
        name: in tables.
        artifact: that answers, by its name in `race_artifacts`.
        beams: of a generative one.
    """

    name: str
    artifact: str
    beams: int | None = None

    @property
    def path(self) -> str:
        """That is asked."""
        return RECOMMEND if self.beams is None else GENERATE


# The fairest rival first: it writes few tokens, along a trie.
WAYS = (
    Way("anyo, titles", DENSE),
    Way("anyo, one position an item", COMPRESSED),
    Way("anyo, as its recipe has it", SHALLOW),
    Way("TIGER", "tiger", MANY),
    Way("BIGRec, 1 beam", "bigrec", GREEDY),
    Way("BIGRec, 4 beams", "bigrec", FEW),
    Way("P5", "p5", MANY),
    Way("GENRE", "genre", MANY),
    Way("LLaRA", "llara", GREEDY),
)


def histories(split: Split, seed: int) -> Iterator[list[int]]:
    """Real sequences of exactly as many items as all ways read; those of no user twice."""
    users = [user for user in range(split.dataset.n_users) if len(split.train_row(user)) >= HISTORY]
    if not users:
        raise SystemExit(f"{split.dataset.name}: no user has {HISTORY} training items; take more --items")
    random.Random(seed).shuffle(users)
    for user in itertools.cycle(users):
        yield split.train_row(user)[-HISTORY:].tolist()


class Served:
    """A service with all artifacts.

    Args:
        url: of it.
        item_ids: of the catalog's rows.
        folders: names under which it has the artifacts.
        ways: to ask.
    """

    def __init__(self, url: str, item_ids: Sequence[str], folders: Mapping[str, str], ways: Sequence[Way]) -> None:
        self.client = httpx.Client(base_url=url, timeout=600)
        self.item_ids, self.folders, self.ways = item_ids, folders, ways
        self.rows: dict[str, list[dict[str, float]]] = defaultdict(list)

    def round(self, asked: Sequence[Sequence[int]], *, keep: bool) -> None:
        """Every way for every history, ways taking turns."""
        for history, way in itertools.product(asked, self.ways):
            body = self._body(way, history)
            started = time.perf_counter()
            answer = self.client.post(way.path, json=body)
            seconds = time.perf_counter() - started
            if answer.status_code != 200:
                raise SystemExit(f"{way.name}: {answer.status_code} {answer.text[:300]}")
            if keep:
                self.rows[way.name].append(_stages(way, answer.json(), 1000 * seconds))

    def table(self) -> dict[str, dict[str, float]]:
        """Medians: milliseconds, and tokens of a text."""
        return {
            name: {field: round(statistics.median(row[field] for row in rows), 2) for field in rows[0]}
            for name, rows in self.rows.items()
        }

    def throughput(self, way: Way, clients: int, seconds: float, asked: Iterator[Sequence[int]]) -> dict[str, float]:
        """Requests a second and median latency [ms] where so many clients ask all the time; each asks at least once."""
        load = asyncio.run(self._closed(way, clients, seconds, asked))
        if set(load.statuses()) != {"200"}:
            raise SystemExit(f"{way.name} with {clients} clients: answers by status {load.statuses()}")
        latencies = load.latencies(200)
        return {
            "per_s": float(f"{len(latencies) / load.seconds:.3g}"), "requests": len(latencies),
            "p50_ms": round(1000 * statistics.median(latencies)),
        }  # fmt: skip

    def _body(self, way: Way, history: Sequence[int]) -> dict[str, Any]:
        beams = {} if way.beams is None else {"beams": way.beams}
        ids = [self.item_ids[row] for row in history]
        return {"history": ids, "k": 10, "artifact": self.folders[way.artifact], **beams}

    async def _closed(self, way: Way, clients: int, seconds: float, asked: Iterator[Sequence[int]]) -> Load:
        pool = Pool(str(self.client.base_url))

        def bodies() -> Iterator[bytes]:
            for history in asked:
                body = json.dumps(self._body(way, history)).encode()
                yield request(f"{pool.host}:{pool.port}", way.path, body)

        try:
            return await closed_loop(pool, bodies(), clients=clients, seconds=seconds)
        finally:
            pool.close()


def _stages(way: Way, answer: Mapping[str, Any], client: float) -> dict[str, float]:
    """Milliseconds at the client, and of the stages of an answer; tokens of each text."""
    spent = answer["timings_ms"]
    row = {"total_ms": client}
    for name, stages in (("reading_ms", READING), ("writing_ms", WRITING), ("finding_ms", FINDING)):
        if found := [spent[stage] for stage in stages if stage in spent]:
            row[name] = sum(found)
    if way.beams is not None:
        row["tokens"] = answer["tokens"]["new"] / way.beams
    return row
