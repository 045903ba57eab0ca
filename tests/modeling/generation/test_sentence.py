"""The sentence of an explanation: what may be said, and that the model says nothing else."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling.generation.beam_search import GenerationError
from modeling.generation.sentence import (
    NEWEST,
    WITH_ONE,
    WITH_TWO,
    SentenceWriter,
    allowed_sentences,
    sentence_writer,
    shown_title,
)
from modeling.generation.shared_prefix import SharedPrefixScorer
from testing.models import write_byte_level

TITLES = ["Toy Story", "Shrek", "Finding Nemo", "It", "{one} more", "a “quoted” thing", "x" * 300]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A random model that reads any text, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(write_byte_level(tmp_path_factory.mktemp("bytes")))
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_a_sentence_names_the_item_and_items_of_the_history_and_nothing_else() -> None:
    frames = [re.escape(each) for each in (*WITH_ONE, *WITH_TWO)]
    frames = [re.sub(r"\\{(item|one|two)\\}", "“([^”]*)”", frame) for frame in frames]
    history = ["Toy Story", "Shrek", "Toy Story", "Finding Nemo"]
    found = allowed_sentences("Shrek", history)
    assert {name for each in found for name in each.named} == {2, 3}, "an equal title once, the item itself never"
    assert len({each.text for each in found}) == len(found) == 2 * len(WITH_ONE) + len(WITH_TWO)
    for each in found:
        (names,) = {match.groups() for frame in frames if (match := re.fullmatch(frame, each.text))}
        assert sorted(names) == sorted(["Shrek", *(history[place] for place in each.named)])


def test_titles_are_slots_whatever_they_hold() -> None:
    for item in TITLES:
        for each in allowed_sentences(item, TITLES):
            rest = each.text
            for title in [item, *(TITLES[place] for place in each.named)]:
                assert shown_title(title) in rest
                rest = rest.replace(shown_title(title), "", 1)
            assert re.fullmatch(r"[A-Za-z ,]+\.", rest), "what is left are words of a template"
    assert len(shown_title("x" * 300)) <= 82 and shown_title(" a\u200b\n b ") == "“a b”"
    many = [f"title {number}" for number in range(40)]
    named = {place for each in allowed_sentences("other", many) for place in each.named}
    assert named == set(range(40 - NEWEST, 40)), "the newest ones"
    assert allowed_sentences("Shrek", []) == allowed_sentences("Shrek", ["Shrek"]) == []


def by_hand(model: Any, prompt: list[int], texts: list[tuple[int, ...]]) -> int:
    """Greedy decoding, every prefix read anew, of all tokens only those that continue a text."""
    left, at = list(range(len(texts))), 0
    while len(left) > 1:
        read = torch.tensor([[*prompt, *texts[left[0]][:at]]])
        with torch.inference_mode():
            logits_V = model(read).logits[0, -1]
        allowed = sorted({texts[place][at] for place in left})
        best = max(allowed, key=lambda token: float(logits_V[token]))
        left, at = [place for place in left if texts[place][at] == best], at + 1
    return left[0]


def test_decoding_is_greedy_along_the_allowed_sentences(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    writer, said, turns = SentenceWriter(model, tokenizer), set(), []

    @contextmanager
    def turn() -> Any:
        turns.append(1)
        yield

    for item in ("Shrek 2", "Monsters, Inc.", "Alien"):
        for history in (TITLES[:3], TITLES[1:2], TITLES):
            prompt = writer.prepare(item, history)
            assert prompt is not None
            sentence = writer.write(prompt)
            assert sentence == prompt.sentences[by_hand(model, list(prompt.tokens), list(prompt.texts))]
            assert writer.write(prompt, turn=turn) == sentence, "read in short passes, the same"
            assert tokenizer.decode(prompt.texts[prompt.sentences.index(sentence)]) == f" {sentence.text}"
            said.add(sentence.text)
    assert len(said) > 3 and turns, "what is said depends on what is read"
    assert writer.prepare("Shrek", ["Shrek"]) is None


def test_a_text_that_begins_another_ends_there_and_one_alone_is_not_asked_about(loaded: tuple[Any, Any]) -> None:
    scorer, turns = SharedPrefixScorer(loaded[0], ()), []

    @contextmanager
    def turn() -> Any:
        turns.append(1)
        yield

    assert scorer.choose([5, 6], [[9, 9, 9]], turn=turn) == 0 and turns == []
    assert scorer.choose([5, 6], [[9, 9, 9], [9, 9]], turn=turn) == 1 and turns == []
    with pytest.raises(GenerationError, match="empty"):
        scorer.choose([5], [[1], []])
    with pytest.raises(GenerationError, match="positions"):
        scorer.choose([5] * 2048, [[1], [2]])


def test_only_a_decoder_with_words_can_say_something(tmp_path: Path) -> None:
    from testing.fake_writer import make_generative_parts

    assert sentence_writer(object()) is None and sentence_writer(make_generative_parts().model) is None
