"""Rankers around a language model: labels, prompts and scores of `tallrec` and `llamarec`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling.generation.api import ListQuery
from modeling.generation.base import ItemIdentifiers
from modeling.generation.item_tokenizer import TitleTokenizer
from modeling.methods.base_prompted import label_tokens
from modeling.methods.llamarec import LetterPrompt, LlamarecRanker
from modeling.methods.tallrec import TallrecRanker, YesNoPrompt
from testing.models import ITEMS, TITLES, backbone_folder, widened

__all__ = ["backbone_folder"]  # a fixture

LABELS = ("red", "blue", "old", "new")
HISTORY = [0, 3, 7]


@pytest.fixture(scope="module")
def parts(backbone_folder: Callable[[str], Path]) -> tuple[Any, Any, ItemIdentifiers]:
    """Model, tokenizer and names of the twelve items; the lower the row, the more popular."""
    folder = str(backbone_folder("llama"))
    model, tokenizer = (
        widened(AutoModelForCausalLM.from_pretrained(folder).eval()),
        AutoTokenizer.from_pretrained(folder),
    )
    spelling = TitleTokenizer(tokenizer, 6)
    return model, tokenizer, ItemIdentifiers(spelling.spell(TITLES, 2), np.arange(ITEMS), spelling)


@pytest.fixture(scope="module")
def yes_no(parts: tuple[Any, Any, ItemIdentifiers]) -> TallrecRanker:
    model, tokenizer, names = parts
    prompt = YesNoPrompt.of(tokenizer, "items chosen", ["red", "blue"])
    return TallrecRanker(model, names, prompt=prompt, end=2, retriever=None, candidates=5, titles=6)


@pytest.fixture(scope="module")
def letters(parts: tuple[Any, Any, ItemIdentifiers]) -> LlamarecRanker:
    model, tokenizer, names = parts
    prompt = LetterPrompt.of(tokenizer, "items chosen", LABELS)
    return LlamarecRanker(model, names, prompt=prompt, window=4, end=2, retriever=None, candidates=6, titles=6)


def logits(model: Any, tokens: list[int]) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        found: np.ndarray[Any, Any] = model(input_ids=torch.tensor([tokens])).logits[0, -1].numpy()
    return found


def test_labels_are_different_single_tokens_where_the_answer_stands(parts: tuple[Any, Any, ItemIdentifiers]) -> None:
    _, tokenizer, _ = parts
    assert label_tokens(tokenizer, "\nAnswer:\n", LABELS) == tuple(tokenizer.convert_tokens_to_ids(list(LABELS)))
    with pytest.raises(ValueError, match="' red lamp' is not a single token"):
        label_tokens(tokenizer, "\nAnswer:", [" red lamp", " blue"])
    with pytest.raises(ValueError, match="token of another label"):
        label_tokens(tokenizer, "\nAnswer:", [" Yes", " No"])  # both unknown here


def test_the_score_is_the_difference_of_the_answers_logits(
    yes_no: TallrecRanker, parts: tuple[Any, Any, ItemIdentifiers]
) -> None:
    (scores,) = yes_no.score([yes_no.prepare_rated(HISTORY, [False, True, False], [4, 9])])
    for row, score in zip((4, 9), scores, strict=True):
        prompt, name = yes_no.prompt, yes_no.name
        text = [*prompt.prefix, *prompt.shared([name(0), name(7)], [name(3)]), *prompt.candidate(name(row))]
        found = logits(parts[0], text)
        assert score == pytest.approx(found[prompt.answers[0]] - found[prompt.answers[1]], abs=1e-4)


def test_what_was_liked_and_what_was_not_are_told_apart(yes_no: TallrecRanker) -> None:
    """Swapped lists give other scores; where nothing is known, all is liked."""
    flags = [False, True, False]
    prompts = [yes_no.prepare_rated(HISTORY, each, [4]) for each in (flags, [not flag for flag in flags], [False] * 3)]
    first, swapped, liked = (float(scores[0]) for scores in yes_no.score(prompts))
    assert abs(first - swapped) > 1e-3
    assert yes_no.score([yes_no.prepare_candidates(HISTORY, [4])])[0][0] == liked
    prompt, name = yes_no.prompt, yes_no.name(0)
    assert prompt.shared([name], []) == [*prompt.liked, *name, *prompt.target], "no line says that nothing was disliked"
    assert prompt.shared([], [name]) == [*prompt.disliked, *name, *prompt.target]


def test_one_forward_gives_the_scores_of_a_window(
    letters: LlamarecRanker, parts: tuple[Any, Any, ItemIdentifiers], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, prompt = [2, 5, 9], letters.prompt
    text = [*prompt.prefix, *letters.shared(HISTORY), *prompt.candidates([letters.name(row) for row in rows])]
    expected = logits(parts[0], text)[list(prompt.answers[:3])]
    run, passes = letters.scorer._search.run_body, []

    def counted(ids: torch.Tensor, *others: Any) -> torch.Tensor:
        passes.append(ids.numel())
        return run(ids, *others)

    monkeypatch.setattr(letters.scorer._search, "run_body", counted)
    (scores,) = letters.score([letters.prepare_candidates(HISTORY, rows)])
    np.testing.assert_allclose(scores - scores[0], expected - expected[0], atol=1e-4)
    assert sum(passes) == len(text) - len(prompt.prefix), "every position is read once"
    assert np.exp(scores - np.log(3)).sum() == pytest.approx(1)


def test_the_order_of_a_request_does_not_matter_and_windows_hold_each_candidate_once(letters: LlamarecRanker) -> None:
    rows = [11, 2, 8, 1, 5, 9, 4, 10, 6]
    (scores,) = letters.score([letters.prepare_candidates(HISTORY, rows)])
    (other,) = letters.score([letters.prepare_candidates(HISTORY, rows[::-1])])
    np.testing.assert_array_equal(scores, other[::-1])
    windows = [sorted(rows)[start::3] for start in range(3)]
    for window in windows:  # each is a prompt of its own
        (alone,) = letters.score([letters.prepare_candidates(HISTORY, window)])
        np.testing.assert_allclose(scores[[rows.index(row) for row in window]], alone, atol=1e-4)


def test_a_list_is_the_models_order_of_the_first_candidates(letters: LlamarecRanker) -> None:
    wanted = ListQuery(9, np.array(HISTORY, np.int64))
    (answer,) = letters.write([letters.prepare(HISTORY)], [wanted])
    found = letters.retrieve(HISTORY, wanted).tolist()
    assert sorted(answer.rows_K[:6].tolist()) == sorted(found[:6]) and answer.rows_K[6:].tolist() == found[6:9]
    assert answer.filled == 3 and (np.diff(answer.scores_K) <= 0).all()


def test_a_free_title_is_read_in_a_history_and_as_a_candidate(letters: LlamarecRanker, yes_no: TallrecRanker) -> None:
    for ranker in (letters, yes_no):
        (free,) = ranker.read_titles([TITLES[4]])
        (by_id,) = ranker.score([ranker.prepare_candidates([0, 3], [4])])
        (by_title,) = ranker.score([ranker.prepare_candidates([0, 3], [free])])
        np.testing.assert_allclose(by_id, by_title, atol=1e-6)
        lists = [ranker.write([ranker.prepare(history)], [ListQuery(3)])[0] for history in ([free], [])]
        assert lists[0].scores_K.tolist() != lists[1].scores_K.tolist()
