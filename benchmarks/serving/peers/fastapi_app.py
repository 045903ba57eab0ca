"""A FastAPI app around sentence-transformers; `python -m benchmarks.serving.peers.fastapi_app`.

As documented: a `SentenceTransformer` of three modules, loaded when the app starts, and a `def` endpoint, which FastAPI
runs on its thread pool. Tuned: the plain model over ready tokens on as many threads as there are cores, one core each,
and an `async def` endpoint that waits for one of them.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.serving.peers.model import DTYPES, Catalog, Model, lanes, port, variant


class Item(BaseModel):
    """One recommended item."""

    item_id: str
    title: str
    score: float


class Ask(BaseModel):
    """Request: a history and the number of items."""

    history: list[str]
    k: int = 10


class Answer(BaseModel):
    """Response: items, best first."""

    items: list[Item]


def documented() -> FastAPI:
    """The app of the tutorials."""
    import os

    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = Path(os.environ["PEER_MODEL"])
    catalog = Catalog(folder)
    dtype = DTYPES[os.environ.get("PEER_PRECISION", "fp32")]
    words = Transformer(str(folder / "backbone"), model_kwargs={"dtype": dtype})
    width, dim = catalog.head["weight"].shape[::-1]
    dense = Dense(width, dim, activation_function=torch.nn.Identity())
    dense.linear.load_state_dict({"weight": catalog.head["weight"], "bias": catalog.head["bias"]})
    model = SentenceTransformer(modules=[words, Pooling(width, "lasttoken"), dense.to(dtype)], device="cpu")
    app = FastAPI()

    @app.post("/recommend")
    def recommend(ask: Ask) -> Answer:
        rows = catalog.rows(ask.history)
        projected_1D = torch.from_numpy(model.encode([catalog.text(rows)], show_progress_bar=False))
        user_1D = catalog.finish(projected_1D, [rows])
        return Answer(**catalog.search(user_1D, [rows], [ask.k])[0])

    return app


def tuned() -> FastAPI:
    """The fastest plain app on two cores: forwards beside each other, each on one thread, unbatched."""
    model = Model()
    pool = ThreadPoolExecutor(lanes(), initializer=torch.set_num_threads, initargs=(1,))
    app = FastAPI()

    def one(ask: Ask) -> dict[str, Any]:
        return model.recommend_tokens([ask.history], [ask.k])[0]

    @app.post("/recommend")
    async def recommend(ask: Ask) -> Answer:
        return Answer(**await asyncio.get_running_loop().run_in_executor(pool, one, ask))

    return app


if __name__ == "__main__":
    app = tuned() if variant() == "tuned" else documented()
    uvicorn.run(app, host="127.0.0.1", port=port(), log_level="warning", access_log=variant() != "tuned")
