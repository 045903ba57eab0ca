"""`llara` as a ranker: a candidate's score is the probability that its title is generated, among those listed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from modeling.generation.token_inputs import with_slots
from modeling.methods.llara import LlaraGenerator
from testing.models import TITLES, backbone_folder, widened
from tests.training.methods.test_choosing import CANDIDATES, untrained

__all__ = ["backbone_folder"]  # a fixture

HISTORY = [4, 7, 0]


@pytest.fixture(scope="module")
def ranker(backbone_folder: Callable[[str], Path]) -> LlaraGenerator:
    found, _ = untrained(backbone_folder("qwen3"))
    widened(found.model)
    return found


def log_probability(ranker: LlaraGenerator, read: list[int], answer: list[int]) -> float:
    """Of an answer, by the whole text in one pass of the model."""
    model = cast(Any, ranker.model)
    ids = torch.tensor([[*ranker.prompt.prefix, *read, *answer]])
    with torch.inference_mode():
        embeds = with_slots(model.get_input_embeddings(), ranker.slots(), ids)
        logs_TV = model(inputs_embeds=embeds).logits[0].double().log_softmax(-1)
    return sum(float(logs_TV[place - 1, ids[0, place]]) for place in range(-len(answer), 0))


def test_a_score_is_the_titles_share_among_those_that_the_prompt_lists(ranker: LlaraGenerator) -> None:
    """With the tokens of whole texts; a free title stands behind the others, with the placeholder as its slot."""
    (free,) = ranker.read_titles(["silk bowl"])
    order = sorted([1, 9, 5], key=lambda row: -float(ranker.retriever(HISTORY)[row]))
    listed = [*((ranker.name(row), row + 1) for row in order), (ranker.name(free), 0)]
    read = [*ranker.prepare(HISTORY).tokens, *ranker.prompt.candidates(listed)]
    logs = np.array([log_probability(ranker, read, ranker.prompt.answer(name)) for name, _ in listed])
    (scores_C,) = ranker.score([ranker.prepare_candidates(HISTORY, [*order, free])])
    np.testing.assert_allclose(scores_C, logs - np.logaddexp.reduce(logs) + np.log(4), atol=1e-3)
    assert np.exp(scores_C - np.log(4)).sum() == pytest.approx(1) and np.ptp(scores_C) > 0.1


def test_other_candidates_and_the_history_change_a_score(ranker: LlaraGenerator) -> None:
    asked = [(HISTORY, [1, 9, 5]), (HISTORY, [1, 9, 2]), (HISTORY[::-1], [1, 9, 5])]
    found = ranker.score([ranker.prepare_candidates(*each) for each in asked])
    differences = [float(scores_C[0] - scores_C[1]) for scores_C in found]
    assert min(abs(differences[0] - other) for other in differences[1:]) > 1e-3


def test_more_candidates_than_a_prompt_lists_are_dealt_out_and_each_position_is_read_once(
    ranker: LlaraGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for row in range(len(TITLES)) if row not in HISTORY]
    prompt, run, passes = ranker.prepare_candidates(HISTORY, rows), ranker.scorer._search.run_body, []

    def counted(ids: torch.Tensor, *others: Any) -> torch.Tensor:
        passes.append(ids.numel())
        return run(ids, *others)

    monkeypatch.setattr(ranker.scorer._search, "run_body", counted)
    (scores_C,) = ranker.score([prompt])
    assert sum(passes) == prompt.length, "what a batch counts is what is read"
    best = sorted(rows, key=lambda row: -float(ranker.retriever(HISTORY)[row]))
    lists = -(-len(rows) // CANDIDATES)
    for start in range(lists):
        window = best[start::lists]
        (alone_C,) = ranker.score([ranker.prepare_candidates(HISTORY, window)])
        np.testing.assert_allclose(scores_C[[rows.index(row) for row in window]], alone_C, atol=1e-4)


def test_equal_titles_have_equal_scores_and_nothing_needs_to_be_known(ranker: LlaraGenerator) -> None:
    first, second = ranker.read_titles(["old lamp", "old  lamp"])
    (scores_C,) = ranker.score([ranker.prepare_candidates([], [3, first, second])])
    assert scores_C[1] == pytest.approx(scores_C[2], abs=1e-5) and np.isfinite(scores_C).all()


def test_the_id_model_orders_the_candidates_of_all_parts_once(
    ranker: LlaraGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, retriever, asked = ranker.prepare_candidates(HISTORY, list(range(len(TITLES)))), ranker.retriever, []

    def counted(rows: Any) -> Any:
        asked.append(rows)
        return retriever(rows)

    monkeypatch.setattr(ranker, "retriever", counted)
    parts = ranker.divide(prompt, 1)
    sizes = [len(ranker.score([part.prompt])[0]) for part in parts]
    assert sizes == [CANDIDATES] * (len(TITLES) // CANDIDATES) and len(asked) == 1
