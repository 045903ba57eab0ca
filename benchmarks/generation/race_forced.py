"""Texts of a forced length in one process: our beam search, Hugging Face's `generate`, and the dense forward."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from index import Catalog
from modeling.generation.beam_search import BeamSettings
from modeling.generation.factory import beam_search_for
from modeling.inference.encoder_forward import compile_encoder
from modeling.methods.base_generative import load_generative
from modeling.methods.bigrec import BigRecGenerator
from modeling.methods.dense import load_artifact

BEAMS, MOST_NEW, NO_TOKEN = (1, 4), 48, -1
NATURAL = "natural"


def forced_lengths(
    dense: Path, bigrec: Path, asked: Sequence[Sequence[int]], lengths: Sequence[int]
) -> list[dict[str, Any]]:
    """Medians in milliseconds for texts that end where the model ends them, and of given lengths; all alternate."""
    encoder = load_artifact(dense).encoder
    compile_encoder(encoder)
    popular = Catalog.read(bigrec / "catalog.parquet").popular()
    model = load_generative(bigrec, popular).model
    assert isinstance(model, BigRecGenerator)
    assert model.end is not None, "titles are closed by the end token"
    prefix, end = model.prompt.prefix, model.end
    natural = beam_search_for(model.model, end_tokens=[end], prefix=prefix)
    endless = beam_search_for(model.model, end_tokens=[NO_TOKEN], prefix=prefix)
    rows = []
    for beams, forced in itertools.product(BEAMS, (None, *lengths)):
        search = BeamSettings(beams=beams, max_new_tokens=forced or MOST_NEW)
        times: dict[str, list[float]] = {"dense": [], "ours": [], "hugging_face": []}
        for number, history in enumerate(asked):
            tokens = list(model.prepare(history).tokens)
            generator = natural if forced is None else endless
            found = {
                "dense": _timed(partial(encoder.encode, [encoder.prepare(list(history))])),
                "ours": _timed(partial(generator.search, [tokens], search)),
                "hugging_face": _timed(partial(hugging_face, model.model, [*prefix, *tokens], beams, forced, end)),
            }
            if number:
                for name, value in found.items():
                    times[name].append(value)
        rows.append(_row(beams, forced, {name: statistics.median(values) for name, values in times.items()}))
    return rows


def hugging_face(model: Any, prompt: Sequence[int], beams: int, forced: int | None, end: int) -> None:
    """`generate` with the same beams; a forced text has exactly that many tokens."""
    length = {"max_new_tokens": MOST_NEW} if forced is None else {"max_new_tokens": forced, "min_new_tokens": forced}
    with torch.inference_mode():
        model.generate(
            input_ids=torch.tensor([list(prompt)]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=beams, do_sample=False, eos_token_id=end, pad_token_id=end, **length,
        )  # fmt: skip


def _row(beams: int, forced: int | None, medians: dict[str, float]) -> dict[str, Any]:
    dense, ours, theirs = (medians[name] for name in ("dense", "ours", "hugging_face"))
    return {
        "beams": beams,
        "tokens": forced or NATURAL,
        **{f"{name}_ms": round(value, 1) for name, value in medians.items()},
        "ours_over_dense": round(ours / dense, 2),
        "hugging_face_over_dense": round(theirs / dense, 2),
        "hugging_face_over_ours": round(theirs / ours, 2),
    }


def _timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)
