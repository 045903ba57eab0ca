"""A prompt that is read once for all its continuations gives the logits of every text read alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling.generation import shared_prefix
from modeling.generation.beam_search import GenerationError
from modeling.generation.shared_prefix import SharedPrefixScorer
from testing.models import backbone_folder, widened

__all__ = ["backbone_folder"]  # a fixture

PREFIX, ASKED = [1, 5, 9], [3, 17, 44, 8]


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt2"])
def model(request: pytest.FixtureRequest, backbone_folder: Callable[[str], Path]) -> Any:
    """Own layers, layers that see a window only, and positions that are learned."""
    from transformers import AutoModelForCausalLM

    return widened(AutoModelForCausalLM.from_pretrained(str(backbone_folder(request.param))).eval())


def texts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 300, size=length).tolist() for length in lengths]


def naive(model: Any, prompt: list[int], continuations: list[list[int]]) -> np.ndarray[Any, Any]:
    """The padded batch of whole texts."""
    whole = [[*PREFIX, *prompt, *each] for each in continuations]
    width = max(map(len, whole))
    ids = torch.tensor([each + [0] * (width - len(each)) for each in whole])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits
    return np.stack([logits[row, len(each) - 1, ASKED].numpy() for row, each in enumerate(whole)])


@pytest.mark.parametrize("lengths", [[7], [5, 1, 9, 4, 12, 3]], ids=["one", "six"])
@pytest.mark.parametrize("length", [0, 21], ids=["no-history", "history"])
def test_it_is_the_naive_batch(model: Any, length: int, lengths: list[int]) -> None:
    (prompt,), continuations = texts([length], 1), texts(lengths)
    found = SharedPrefixScorer(model, ASKED, PREFIX).logits(prompt, continuations)
    np.testing.assert_allclose(found, naive(model, prompt, continuations), atol=1e-4)


def test_passes_are_bounded_where_somebody_waits_and_change_nothing(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_prefix, "SERVED_POSITIONS", 8)
    (prompt,), continuations = texts([19], 1), texts([5, 3, 2, 11, 4])
    scorer, passes, turns = SharedPrefixScorer(model, ASKED, PREFIX), [], []
    run = scorer._search.run_body

    def counted(ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        passes.append(ids.numel())
        return run(ids, *rest)

    monkeypatch.setattr(scorer._search, "run_body", counted)

    @contextmanager
    def turn() -> Iterator[None]:
        turns.append(1)
        yield

    found = scorer.logits(prompt, continuations, turn=turn)
    assert passes == [8, 8, 3, 8, 2, 8, 3, 4] and len(turns) == len(passes) + 1
    np.testing.assert_allclose(found, naive(model, prompt, continuations), atol=1e-4)


@pytest.mark.parametrize("most", [8, 512])
def test_a_text_has_the_log_probability_of_its_tokens_behind_all_before_them(
    model: Any, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(shared_prefix, "OFFLINE_POSITIONS", most)
    (prompt, *begins), written = texts([11, 6, 13], 1), (texts([3, 2, 5, 4], 2), texts([2, 2], 3))
    branches = list(zip(begins, written, strict=True))
    found = SharedPrefixScorer(model, (), PREFIX).likelihoods(prompt, branches)
    for (begin, continuations), scores_C in zip(branches, found, strict=True):
        for text, score in zip(continuations, scores_C, strict=True):
            whole = [*PREFIX, *prompt, *begin, *text]
            with torch.inference_mode():
                logs_TV = model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
            places = range(len(whole) - len(text), len(whole))
            assert score == pytest.approx(sum(float(logs_TV[each - 1, whole[each]]) for each in places), abs=1e-3)


def test_what_cannot_be_read_is_refused(model: Any) -> None:
    scorer = SharedPrefixScorer(model, ASKED, PREFIX)
    with pytest.raises(GenerationError, match="empty"):
        scorer.logits([4], [[5], []])
    refused: list[tuple[list[int], list[list[int]]]] = [([], [[5, 6]]), ([4], [[5, 6], [7]]), ([4], [])]
    for branch in refused:
        with pytest.raises(GenerationError, match="empty"):
            scorer.likelihoods([4], [branch])
    if scorer.limit is not None:
        with pytest.raises(GenerationError, match=f"the model has {scorer.limit}"):
            scorer.logits([4] * scorer.limit, [[5]])
