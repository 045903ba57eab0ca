"""Other authors' figures with the protocol of a report: the same data, leave-one-out, the whole catalog ranked.

None of them was measured here. A figure stands in one of two columns, seen items removed or kept, and beside no other.
"""

from __future__ import annotations

from typing import NamedTuple

from training.data.dataset import Dataset


class Published(NamedTuple):
    """One row of somebody else's table: HR@10 (Recall@10) and NDCG@10."""

    method: str
    recall_10: float
    ndcg_10: float
    seen: str
    source: str


_BENCHMARK = "repository blondered/transformer_benchmark"
_CONSREC = "README of repository NEUIR/ConsRec"
_BEAUTY = (
    Published("LlamaRec (Llama-2-7B re-ranks 20)", 0.0971, 0.0554, "removed", "paper; in a window of 50, titles only"),
    Published("eSASRec", 0.0928, 0.0523, "removed", _BENCHMARK),
    Published("SASRec + sampled softmax", 0.0921, 0.0531, "removed", _BENCHMARK),
    Published("FuXi-α (recomputed there)", 0.0809, 0.0451, "removed", _BENCHMARK),
    Published("HSTU (recomputed there)", 0.0788, 0.0439, "removed", _BENCHMARK),
    Published("TASTE (T5, text)", 0.1030, 0.0517, "kept", _CONSREC),
    Published("DWSRec", 0.0989, 0.0470, "kept", _CONSREC),
    Published("DIF-SR", 0.0908, 0.0446, "kept", _CONSREC),
    Published("HLLM-1B, reproduced by ConsRec's authors", 0.0887, 0.0499, "kept", _CONSREC),
    Published("S³Rec", 0.0868, 0.0439, "kept", _CONSREC),
)
_BY_SIZE = {(22_363, 12_101, 198_502): _BEAUTY}
"""By users, items and interactions: the data has many names, and these three numbers tell it apart."""


def published_for(dataset: Dataset, split: str) -> tuple[Published, ...]:
    """The rows that may stand beside figures of ``dataset`` by ``split``; none for data of another size."""
    if split != "leave-one-out":
        return ()
    return _BY_SIZE.get((dataset.n_users, dataset.n_items, dataset.n_interactions), ())
