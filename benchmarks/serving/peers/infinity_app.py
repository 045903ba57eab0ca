"""infinity inside FastAPI, as its documentation embeds its engine; `python -m benchmarks.serving.peers.infinity_app`.

It reads text and returns vectors of length one, from a folder of sentence-transformers. The newest item's vector is to
be added before that, so the projector has one output more, which is always one: divided by it, a vector has its own
length again. As documented: `AsyncEmbeddingEngine` as it comes. Tuned: one thread, batches of eight, put together by
the lengths of their tokens. It runs with transformers 4, whose names for some facts of the folder are older.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from pydantic import BaseModel
from safetensors.torch import save_file

from benchmarks.serving.peers.model import Catalog, port, variant

MODULES = (
    ("0", "", "sentence_transformers.models.Transformer"),
    ("1", "1_Pooling", "sentence_transformers.models.Pooling"),
    ("2", "2_Dense", "sentence_transformers.models.Dense"),
)


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


def write_folder(source: Path, catalog: Catalog, target: Path) -> None:
    """Write the exported model as sentence-transformers 3 and transformers 4 read it."""
    backbone = source / "backbone"
    config = json.loads((backbone / "config.json").read_text())
    config |= {"rope_theta": config["rope_parameters"]["rope_theta"], "torch_dtype": config["dtype"]}
    tokenizer = json.loads((backbone / "tokenizer_config.json").read_text())
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    # Unless told, transformers 4 changes this fact of a stored tokenizer to its own default.
    stored = json.loads((backbone / "tokenizer.json").read_text())["pre_tokenizer"]
    tokenizer["add_prefix_space"] = bool(stored.get("add_prefix_space"))
    weight, bias = catalog.head["weight"], catalog.head["bias"]
    dim, width = weight.shape
    files: dict[str, Any] = {
        "config.json": config,
        "tokenizer_config.json": tokenizer,
        "modules.json": [{"idx": int(name), "name": name, "path": path, "type": kind} for name, path, kind in MODULES],
        "sentence_bert_config.json": {"max_seq_length": config["max_position_embeddings"], "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_lasttoken": True,
        },
        "2_Dense/config.json": {
            "in_features": width,
            "out_features": dim + 1,
            "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    }
    for name, content in files.items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text(json.dumps(content))
    for name in ("model.safetensors", "tokenizer.json"):
        (target / name).symlink_to((backbone / name).absolute())
    whole = {
        "linear.weight": torch.cat([weight, torch.zeros(1, width)]),
        "linear.bias": torch.cat([bias, torch.ones(1)]),
    }
    save_file(whole, target / "2_Dense" / "model.safetensors")


def engine_of(folder: Path) -> AsyncEmbeddingEngine:
    """The engine around that folder."""
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[os.environ.get("PEER_PRECISION", "fp32")]
    given: dict[str, Any] = {"device": "cpu", "dtype": dtype, "bettertransformer": False, "trust_remote_code": False}
    if variant() == "tuned":
        torch.set_num_threads(1)
        given |= {"batch_size": 8, "lengths_via_tokenize": True}
    return AsyncEmbeddingEngine.from_args(EngineArgs(model_name_or_path=str(folder), engine="torch", **given))


def application(catalog: Catalog, engine: AsyncEmbeddingEngine) -> FastAPI:
    """The app, with the engine running as long as it does."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with engine:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/recommend")
    async def recommend(ask: Ask) -> Answer:
        rows = catalog.rows(ask.history)
        embeddings, _ = await engine.embed(sentences=[catalog.text(rows)])
        unit_1D = torch.tensor(embeddings[0])[None]
        user_1D = catalog.finish(unit_1D[:, :-1] / unit_1D[:, -1:], [rows])
        return Answer(**catalog.search(user_1D, [rows], [ask.k])[0])

    return app


if __name__ == "__main__":
    source = Path(os.environ["PEER_MODEL"])
    catalog = Catalog(source)
    with tempfile.TemporaryDirectory(prefix="infinity-") as name:
        write_folder(source, catalog, Path(name))
        uvicorn.run(application(catalog, engine_of(Path(name))), host="127.0.0.1", port=port(), log_level="warning")
