"""The capacity calculator: its formulas against indexes that are built, its figures against the stored results."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.serving.capacity import ENCODERS, GPU_SEARCH, HOST_MS, Encoder, bytes_per_item, load_row
from index import build_index
from index.ivf.cells import IvfIndex
from index.spec import spec_of

ITEMS, DIM = 3000, 32


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf-sq", "ivf-pq"])
def test_bytes_of_an_item_are_those_that_an_index_states(kind: str) -> None:
    vectors = np.random.default_rng(0).standard_normal((ITEMS, DIM)).astype(np.float32)
    settings = {"build_effort": 16} if kind == "hnsw" else {"cells": 4} if kind.startswith("ivf") else {}
    index = build_index(spec_of(kind, settings), vectors)
    centres = 4 * 4 * DIM if isinstance(index, IvfIndex) else 0  # of four cells
    assert sum(bytes_per_item(kind, DIM)) == pytest.approx((index.nbytes - centres) / ITEMS, rel=0.01)


def test_every_figure_is_in_one_row_of_a_stored_result() -> None:
    assert all(each.per_second() > 0 for each in ENCODERS) and HOST_MS.value() > 0 and GPU_SEARCH.value() > 0


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda each: each.name)
def test_units_carry_the_load_and_cost_follows_from_them(encoder: Encoder) -> None:
    row = load_row(encoder, 5000, 0.8, core_hour=0.1, gpu_hour=3.0)
    units = row["gpus"] or row["cores"]
    assert (units - 1) * 0.8 * encoder.per_second() < 5000 <= units * 0.8 * encoder.per_second()
    hour = 0.1 * row["cores"] + 3.0 * row["gpus"]
    assert row["per_thousand_requests"] == pytest.approx(hour / (5000 * 3600) * 1000, rel=0.01)
    assert encoder.unit == "core" or row["cores"] * 1000 / HOST_MS.value() > 5000, "the service beside a GPU has cores"
