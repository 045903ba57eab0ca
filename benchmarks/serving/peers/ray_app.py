"""Ray Serve; `python -m benchmarks.serving.peers.ray_app`.

As documented: one deployment with `@serve.batch`, tokenizing in the batch. Tuned: one replica a core with one thread
each, ready tokens, no batching. The dashboard and usage statistics are off in both.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.serving.peers.model import Model, lanes, port, variant


@serve.deployment(max_ongoing_requests=256)
class Documented:
    """Batches of up to eight that wait 100 ms to fill, as in the batching tutorial."""

    def __init__(self) -> None:
        self.model = Model()

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.1)
    async def batch(self, asks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.model.recommend_texts([ask["history"] for ask in asks], [ask["k"] for ask in asks])

    async def __call__(self, request: Request) -> Any:
        return await self.batch(await request.json())


@serve.deployment(max_ongoing_requests=2)
class Tuned:
    """One request at a time on one thread; the second of the two waits here rather than at the proxy."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.model = Model()

    async def __call__(self, request: Request) -> Any:
        ask = await request.json()
        return self.model.recommend_tokens([ask["history"]], [ask["k"]])[0]


def main() -> None:
    """Serve until SIGTERM."""
    given = {name: value for name, value in os.environ.items() if name.startswith("PEER_")}
    ray.init(
        num_cpus=lanes() + 1,  # the proxy and the controller ask for none; one more, so that nothing waits for a core
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {**given, "PYTHONPATH": os.getcwd()}},
        log_to_driver=False,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port(), "request_timeout_s": 120})
    app = Tuned.options(num_replicas=lanes()).bind() if variant() == "tuned" else Documented.bind()  # type: ignore[attr-defined]
    serve.run(app, route_prefix="/recommend")
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()
    ray.shutdown()
    sys.exit(0)


if __name__ == "__main__":
    main()
