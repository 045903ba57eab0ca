"""A steady load that does not wait for answers: requests leave at their time, however slow the last ones were.

Latency counts from the time a request was due, so a service that stalls cannot hide it by being asked less.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import numpy as np

Kind = Literal["explicit", "user", "event"]
KINDS: tuple[Kind, ...] = ("explicit", "user", "event")
MIX: tuple[Kind, ...] = ("explicit", "user", "explicit", "event")
USERS = 40
HISTORY = 6  # items of an explicit history
IN_FLIGHT = 400  # beyond it a request is not sent and counts as failed: the load stays bounded


@dataclass(slots=True)
class Sent:
    """One request: when it was due, how long it took, and what came of it ("200", "200 degraded", "503", "error …")."""

    kind: Kind
    due: float
    seconds: float
    outcome: str


@dataclass
class Load:
    """Offers `rate` requests a second to `url` for as long as `run` is not told to stop."""

    url: str
    rate: float
    items: list[str]
    repeat_appends: bool = False
    sent: list[Sent] = field(default_factory=list)
    acknowledged: dict[str, set[str]] = field(default_factory=dict)
    repeated: int = 0
    over: bool = False
    _numbers: Any = field(default_factory=itertools.count)

    async def run(self) -> None:
        """Send until `over`, then wait for what is in flight."""
        limits = httpx.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
        async with httpx.AsyncClient(base_url=self.url, timeout=30, limits=limits) as client:
            tasks: set[asyncio.Task[None]] = set()
            started = time.monotonic()
            for number in itertools.count():
                due = started + number / self.rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if self.over:
                    break
                kind = MIX[number % len(MIX)]
                if len(tasks) >= IN_FLIGHT:
                    self.sent.append(Sent(kind, due, 0.0, "error not sent, too many in flight"))
                    continue
                task = asyncio.create_task(self._send(client, kind, due))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)

    async def _send(self, client: httpx.AsyncClient, kind: Kind, due: float) -> None:
        number = next(self._numbers)
        outcome = await self._once(client, kind, number)
        while kind == "event" and self.repeat_appends and outcome != "200" and not self.over:
            self.repeated += 1
            outcome = await self._once(client, kind, number)
        self.sent.append(Sent(kind, due, time.monotonic() - due, outcome))

    async def _once(self, client: httpx.AsyncClient, kind: Kind, number: int) -> str:
        user = f"u{number % USERS}"
        try:
            if kind == "event":
                event = {"item_id": self.items[number % len(self.items)], "event_id": f"e{number}"}
                answer = await client.post(f"/users/{user}/events", json={"events": [event]})
                if answer.status_code == 200:
                    self.acknowledged.setdefault(user, set()).add(f"e{number}")
                return str(answer.status_code)
            body: dict[str, Any] = {"user_id": user}
            if kind == "explicit":
                body = {"history": [self.items[(7 * number + place) % len(self.items)] for place in range(HISTORY)]}
            answer = await client.post("/recommend", json=body)
            degraded = answer.status_code == 200 and answer.json()["degraded"]
            return f"{answer.status_code}{' degraded' if degraded else ''}"
        except httpx.HTTPError as error:
            return f"error {type(error).__name__}"


def summary(sent: list[Sent], failed: Callable[[Sent], bool]) -> dict[str, dict[str, Any]]:
    """Return for each kind: how many, how many failed, what came of them, p50 and p99 in ms."""
    rows: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        some = [one for one in sent if one.kind == kind]
        if not some:
            continue
        p50, p99 = np.percentile([1000 * one.seconds for one in some], (50, 99))
        rows[kind] = {
            "requests": len(some),
            "failed": sum(map(failed, some)),
            "outcomes": dict(Counter(one.outcome for one in some)),
            "p50_ms": round(float(p50), 1),
            "p99_ms": round(float(p99), 1),
        }
    return rows


def show(name: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print one phase as lines for people."""
    for kind, row in rows.items():
        outcomes = ", ".join(f"{outcome}: {count}" for outcome, count in sorted(row["outcomes"].items()))
        print(
            f"{name:34s} {kind:9s} {row['requests']:5d} requests  {row['failed']:4d} failed  "
            f"p50 {row['p50_ms']:7.1f} ms  p99 {row['p99_ms']:7.1f} ms   {outcomes}",
            flush=True,
        )


async def lost(url: str, acknowledged: dict[str, set[str]]) -> list[str]:
    """Return the acknowledged events that the service no longer has."""
    missing = []
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        for user, events in acknowledged.items():
            answer = await client.get(f"/users/{user}")
            kept = [event["event_id"] for event in answer.json().get("events", [])]
            missing += [f"{user}/{event}" for event in sorted(events - set(kept))]
            missing += [f"{user}/{event} twice" for event in sorted(set(kept)) if kept.count(event) > 1]
    return missing


async def some_items(url: str) -> list[str]:
    """Return item ids of the artifact that is served."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        return [item["item_id"] for item in (await client.get("/items?limit=200")).json()["items"]]
