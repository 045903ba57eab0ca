"""The model that all peers serve: a plain Hugging Face forward over a prompt, projector and FAISS; none of our code.

`benchmarks.serving.export` writes the folder that this reads. In it every item is a token of its own, whose embedding
is what our history shows of the item, so that a history is plain text to a tokenizer, and plain token ids to a model:
`Title one<|item_17|>Title two<|item_4|>`.

Shape legend: B histories, T positions, H backbone width, D item dimension, N items, K items asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def variant() -> str:
    """`documented` or `tuned`, as the benchmark asks."""
    return os.environ["PEER_VARIANT"]


def port() -> int:
    """Port to listen on, on 127.0.0.1."""
    return int(os.environ["PEER_PORT"])


def lanes() -> int:
    """Workers of a tuned peer, one thread each."""
    return int(os.environ["PEER_LANES"])


class Catalog:
    """Items by row: ids, titles, the text and the tokens that stand for each in a prompt, and their vectors."""

    def __init__(self, folder: Path) -> None:
        facts = json.loads((folder / "catalog.json").read_text())
        self.item_ids: list[str] = facts["item_ids"]
        self.titles: list[str] = facts["titles"]
        self.texts: list[str] = facts["texts"]
        self.tokens: list[list[int]] = facts["tokens"]
        self.limit: int = facts["history_limit"]
        self.normalize: bool = facts["normalize"]
        self._rows = {item_id: row for row, item_id in enumerate(self.item_ids)}
        self.head = load_file(folder / "head.safetensors")

    @cached_property
    def index(self) -> Any:
        """Exact inner products over all item vectors."""
        items_ND = np.ascontiguousarray(self.head["items"].numpy())
        index = faiss.IndexFlatIP(items_ND.shape[1])
        index.add(items_ND)
        return index

    def rows(self, history: Sequence[str]) -> list[int]:
        """Rows of the newest items that are read; unknown ids are left out."""
        return [self._rows[item_id] for item_id in history if item_id in self._rows][-self.limit :]

    def text(self, rows: Sequence[int]) -> str:
        """The prompt of a history, as text."""
        return "".join(self.texts[row] for row in rows)

    def prompt(self, rows: Sequence[int]) -> list[int]:
        """The same prompt from tokens that were made once."""
        return [token for row in rows for token in self.tokens[row]]

    def finish(self, vectors_BD: torch.Tensor, rows_B: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
        """User vectors from projected states: with the newest items' own vectors added, and of length one."""
        if "recent_weights" in self.head:
            weights_R, vectors_ND = self.head["recent_weights"], self.head["recent"]
            newest = [list(rows[: -len(weights_R) - 1 : -1]) for rows in rows_B]
            added = [weights_R[: len(rows)] @ vectors_ND[rows] for rows in newest]
            vectors_BD = vectors_BD.float() + torch.stack(added)
        if self.normalize:
            vectors_BD = F.normalize(vectors_BD, dim=-1)
        return vectors_BD.numpy()

    def search(
        self, user_BD: np.ndarray[Any, Any], histories: Sequence[Sequence[int]], ks: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Answers with the K best items that are not in the history, one search for all."""
        wide = min(len(self.item_ids), max(k + len(set(rows)) for rows, k in zip(histories, ks, strict=True)))
        scores, found = self.index.search(np.ascontiguousarray(user_BD, np.float32), wide)
        answers = []
        for rows, k, scores_K, found_K in zip(histories, ks, scores, found, strict=True):
            seen = set(rows)
            best = [
                (row, score) for row, score in zip(found_K.tolist(), scores_K.tolist(), strict=True) if row not in seen
            ]
            answers.append(
                {
                    "items": [
                        {"item_id": self.item_ids[row], "title": self.titles[row], "score": score}
                        for row, score in best[:k]
                    ]
                }
            )
        return answers


class Model:
    """Backbone, projector and catalog of an exported artifact."""

    def __init__(self) -> None:
        folder = Path(os.environ["PEER_MODEL"])
        self.dtype = DTYPES[os.environ.get("PEER_PRECISION", "fp32")]
        self.backbone = AutoModel.from_pretrained(folder / "backbone", dtype=self.dtype).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "backbone")
        self.catalog = Catalog(folder)

    def recommend_texts(self, histories: Sequence[Sequence[str]], ks: Sequence[int]) -> list[dict[str, Any]]:
        """As documented everywhere: tokenize the prompts, pad them to one length, run the model with their mask."""
        rows = [self.catalog.rows(history) for history in histories]
        inputs = self.tokenizer([self.catalog.text(each) for each in rows], padding=True, return_tensors="pt")
        return self._answer(rows, ks, inputs["input_ids"], inputs["attention_mask"])

    def recommend_tokens(self, histories: Sequence[Sequence[str]], ks: Sequence[int]) -> list[dict[str, Any]]:
        """Tuned: tokens made once; no mask, since on the right of the pooled position causal attention sees nothing."""
        rows = [self.catalog.rows(history) for history in histories]
        prompts = [torch.tensor(self.catalog.prompt(each)) for each in rows]
        ids_BT = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
        return self._answer(rows, ks, ids_BT, None, torch.tensor([len(prompt) for prompt in prompts]))

    @torch.inference_mode()
    def _answer(
        self,
        rows: Sequence[Sequence[int]],
        ks: Sequence[int],
        ids_BT: torch.Tensor,
        mask_BT: torch.Tensor | None,
        lengths_B: torch.Tensor | None = None,
    ) -> list[dict[str, Any]]:
        if lengths_B is None:
            assert mask_BT is not None
            lengths_B = mask_BT.sum(1)
        states_BTH = self.backbone(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
        last_BH = states_BTH[torch.arange(len(lengths_B)), lengths_B - 1].float()
        projected_BD = F.linear(last_BH, self.catalog.head["weight"], self.catalog.head["bias"])
        return self.catalog.search(self.catalog.finish(projected_BD, rows), rows, ks)
