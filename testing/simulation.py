"""The batching core on a virtual clock: what queueing alone would cost the requests of a given load."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.engine.batcher import Batch, Batcher, Limits, Waiter

Cost = Callable[[int], float]


@dataclass(frozen=True)
class Costs:
    """Seconds of a batch from its positions: one that has the machine to itself, and one beside another lane's."""

    alone: Cost
    beside: Cost


def simulate(arrivals: Sequence[tuple[float, int]], limits: Limits, costs: Costs, lanes: int = 1) -> list[float]:
    """Latencies of requests (due, positions) through the batching core and its lanes, in the order of arrival."""
    now = 0.0
    queue: Batcher[int, int] = Batcher(limits, lambda: now)
    latencies, waiting = [0.0] * len(arrivals), list(enumerate(arrivals))[::-1]
    running: list[tuple[float, int, Batch[int, int]]] = []  # by the time of their end
    while waiting or queue.depth or running:
        while running and running[0][0] <= now:
            end, _, batch = heapq.heappop(running)
            queue.done(batch)
            for entry in batch.entries:
                latencies[entry.work] = end - arrivals[entry.work][0]
        while waiting and waiting[-1][1][0] <= now:
            number, (_, positions) = waiting.pop()
            queue.admit(number, positions, number, Waiter(number, float("inf")))
        while len(running) < lanes and (taken := queue.next_batch(lanes - len(running))) is not None:
            cost = costs.alone if not running and not queue.depth else costs.beside
            heapq.heappush(running, (now + cost(taken.tokens), taken.entries[0].work, taken))
        now = min([end for end, _, _ in running[:1]] + [due for _, (due, _) in waiting[-1:]], default=now)
    return latencies
