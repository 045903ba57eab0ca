"""BentoML; `python -m bentoml serve benchmarks.serving.peers.bentoml_app:Recommender`.

As documented: a batchable endpoint, whose requests and answers are lists; a client sends a list of one, and BentoML
puts several together and learns for how long to wait. Tuned: one worker a core with one thread each, ready tokens, no
batching.
"""

from __future__ import annotations

from typing import Any

import bentoml
from pydantic import BaseModel

from benchmarks.serving.peers.model import Model, lanes, variant


class Ask(BaseModel):
    """Request: a history and the number of items."""

    history: list[str]
    k: int = 10


@bentoml.service(traffic={"timeout": 120})
class Documented:
    """Adaptive batches."""

    def __init__(self) -> None:
        self.model = Model()

    # Its default of 60 s, shortened by nothing: a lower limit would refuse what a loaded CPU takes longer for.
    @bentoml.api(batchable=True, max_batch_size=8, max_latency_ms=60_000)
    def recommend(self, asks: list[Ask]) -> list[dict[str, Any]]:
        return self.model.recommend_texts([ask.history for ask in asks], [ask.k for ask in asks])


@bentoml.service(traffic={"timeout": 120}, workers=lanes(), threads=1)
class Tuned:
    """One request at a time on one thread."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.model = Model()

    @bentoml.api
    def recommend(self, asks: list[Ask]) -> list[dict[str, Any]]:
        return self.model.recommend_tokens([ask.history for ask in asks], [ask.k for ask in asks])


DenseRecommender = Tuned if variant() == "tuned" else Documented
