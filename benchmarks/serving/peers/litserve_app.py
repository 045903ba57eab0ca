"""LitServe; `python -m benchmarks.serving.peers.litserve_app`.

As documented: a `LitAPI` whose requests are batched, tokenizing in `predict`. Tuned: one worker a core with one thread
each, ready tokens, no batching (which does not pay on two cores), and the faster of its two queues.
"""

from __future__ import annotations

from typing import Any

import litserve as ls

from benchmarks.serving.peers.model import Model, lanes, port, variant


class Documented(ls.LitAPI):
    """Batches of up to eight that wait 50 ms to fill, as its documentation has it."""

    def setup(self, device: str) -> None:
        self.model = Model()

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe takes an annotation for a schema
        return request

    def predict(self, asks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.model.recommend_texts([ask["history"] for ask in asks], [ask["k"] for ask in asks])

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


class Tuned(Documented):
    """One request at a time on one thread."""

    def setup(self, device: str) -> None:
        import torch

        torch.set_num_threads(1)
        super().setup(device)

    def predict(self, ask: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        return self.model.recommend_tokens([ask["history"]], [ask["k"]])[0]


def server() -> ls.LitServer:
    """The server of this variant."""
    if variant() == "tuned":
        api = Tuned(api_path="/recommend")
        return ls.LitServer(api, accelerator="cpu", workers_per_device=lanes(), timeout=120, fast_queue=True)
    api = Documented(max_batch_size=8, batch_timeout=0.05, api_path="/recommend")
    return ls.LitServer(api, accelerator="cpu", timeout=120)


if __name__ == "__main__":
    server().run(host="127.0.0.1", port=port(), generate_client_file=False, log_level="warning")
