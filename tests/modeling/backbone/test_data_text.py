"""Titles are text, whatever they spell: no kind of tokenizer makes a control token of data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from modeling.backbone.loading import TextTokenizer, load_tokenizer
from modeling.encoder.build import _free_text
from modeling.encoder.prompt import TitleTokens
from modeling.generation.item_tokenizer import TitleTokenizer
from modeling.methods.bigrec_prompt import InstructionPrompt
from modeling.methods.llara_prompt import ChoicePrompt
from modeling.spec import BackboneSpec, HistorySpec, ModelSpec
from modeling.text import plain_text
from service.http.schemas import FreeTitle
from training.data import columns
from training.tiny import _train_tokenizer

TEXTS = ["The Quiet Lamp", "a wide rug (1984)", "end of the unk sep", "inst think"]
TITLES = [
    "The Quiet Lamp",
    "1984",
    "AC/DC",
    '{"title": "x"}',
    "a, b -> c",
    '"quoted"',
    "caf\u00e9 \U0001f600",
    "|",
    "<",
    "[",
]


def _fast(model: Any, pre_tokenizer: Any = None, **special: str) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(model)
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def _words() -> Any:
    """Words between white space, control tokens among them: a title that is one of them is one of them."""
    from tokenizers import models, pre_tokenizers

    words = ["<pad>", "<s>", "</s>", "<unk>", "The", "Quiet", "Lamp"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return _fast(
        models.WordLevel(vocabulary, unk_token="<unk>"), pre_tokenizers.WhitespaceSplit(),
        bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
    )  # fmt: skip


def _unigram() -> Any:
    """As T5 and SentencePiece's unigram models: control tokens are pieces with the best score."""
    from tokenizers import models, pre_tokenizers

    letters = sorted({letter for title in [*TITLES, "</s><pad>unk"] for letter in title} | {"\u2581"})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -5.0) for letter in letters)]
    return _fast(
        models.Unigram(pieces, 2), pre_tokenizers.Metaspace(), eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def _llama() -> Any:
    """As Llama 3: a word of the vocabulary is taken whole, whatever the merges."""
    from tokenizers import models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "<|eot_id|>", "<|begin|>"])}
    before = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return _fast(models.BPE(vocabulary, [], ignore_merges=True), before, bos_token="<|begin|>", eos_token="<|eot_id|>")


def _gpt() -> Any:
    """As GPT-2, whose one control token is also that of unknown text, with tokens that are control tokens by use."""
    from transformers import AddedToken

    tokenizer = _train_tokenizer(TEXTS)
    tokenizer.unk_token = tokenizer.eos_token
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("[INST]", special=False), "Quiet"])
    return tokenizer


def _python() -> Any:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer(extra_ids=2)


KINDS: dict[str, Callable[[], Any]] = {
    "tiny": lambda: _train_tokenizer(TEXTS),
    "minilm": lambda: load_tokenizer("minilm"),
    "words": _words,
    "unigram": _unigram,
    "llama": _llama,
    "gpt": _gpt,
    "python": _python,
}


def spelled(tokenizer: Any) -> list[str]:
    """Titles that spell every control token, alone and among words."""
    control = {token.content for token in tokenizer.added_tokens_decoder.values() if token.content != "Quiet"}
    found = sorted(control | set(tokenizer.all_special_tokens))
    return [*found, *(f"The {word} Lamp" for word in found), *(f"a{word}{word}b" for word in found), " ".join(found)]


def control_ids(tokenizer: Any) -> set[int]:
    named = {number for number, token in tokenizer.added_tokens_decoder.items() if token.content != "Quiet"}
    return named | set(tokenizer.all_special_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_no_title_has_a_control_token(kind: str) -> None:
    tokenizer = KINDS[kind]()
    titles = spelled(tokenizer)
    assert control_ids(tokenizer) & {
        token for ids in tokenizer(titles, add_special_tokens=False)["input_ids"] for token in ids
    }, "as the tokenizer reads them, they have"
    unknown = set() if kind == "gpt" else {tokenizer.unk_token_id}
    for title, ids in zip(titles, TextTokenizer(tokenizer)(titles), strict=True):
        assert not (control_ids(tokenizer) - unknown) & set(ids), title
        assert ids, title


@pytest.mark.parametrize("kind", ["tiny", "llama", "gpt", "unigram", "python"])
def test_a_control_token_that_is_spelled_is_read_letter_by_letter(kind: str) -> None:
    """Nothing of the title is lost where the tokenizer knows all letters."""
    tokenizer = KINDS[kind]()
    pieces = TextTokenizer(tokenizer)
    for title in spelled(tokenizer):
        text = tokenizer.decode(pieces([title])[0]).replace("\u2581", " ")
        assert text.replace(" ", "") == title.replace(" ", ""), title


@pytest.mark.parametrize("kind", KINDS)
def test_other_titles_have_the_tokens_that_they_had(kind: str) -> None:
    """Artifacts hold title tokens made before: those of plain titles stay as they are."""
    tokenizer = KINDS[kind]()
    assert TextTokenizer(tokenizer)(TITLES) == tokenizer(TITLES, add_special_tokens=False)["input_ids"]
    assert TextTokenizer(tokenizer)([]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_one_title_is_read_alike_wherever_it_comes_from(kind: str) -> None:
    """Catalog, free title of a dense model, free title of a model that writes; and however its white space looks."""
    tokenizer = KINDS[kind]()
    pieces = TextTokenizer(tokenizer)
    spec = ModelSpec(history=HistorySpec(form="titles"), backbone=BackboneSpec(source="tiny"))
    read = _free_text(spec, None, None, pieces)  # type: ignore[arg-type]
    assert read is not None
    for title in [*TITLES, *spelled(tokenizer)]:
        catalog = TitleTokens.of_titles([title], pieces, spec.history.title_tokens)[0]
        for typed in (title, f" {title}\t", title.replace(" ", "\u00a0\n "), f"\ufeff{title}\u200b"):
            (dense,), (written,) = read([typed]), TitleTokenizer(tokenizer, spec.history.title_tokens).read([typed])
            assert np.array_equal(dense.tokens, catalog) and np.array_equal(written.tokens, catalog), typed


def test_what_a_recipe_says_itself_keeps_its_line_ends_and_control_tokens() -> None:
    tokenizer = KINDS["tiny"]()
    pieces, end = TextTokenizer(tokenizer), tokenizer.eos_token_id
    assert end in pieces.fixed(["<|end|> items"])[0] and end not in pieces(["<|end|> items"])[0]
    assert "\n" in tokenizer.decode(InstructionPrompt.of(tokenizer, "items", end).respond)
    assert "\n" in tokenizer.decode(ChoicePrompt.of(tokenizer, "items", end, 9).choose)


@pytest.mark.parametrize("typed", ["The  Quiet\u00a0Lamp\n", "caf\u0065\u0301\u200b", "\ufeffa\tb \x00", "<|end|>  x"])
def test_data_files_and_requests_read_the_same_text(typed: str) -> None:
    """Whatever else a model does with it: what a data set's title becomes is what a free title becomes."""
    for column in (pl.Series("title", [typed]), pl.Series("title", [typed], dtype=pl.Object)):
        values, _ = columns.text(column, "items.csv")
        assert values.to_list() == [FreeTitle(title=typed).title] == [plain_text(typed)]
    assert columns.text(pl.Series("title", ["\u200b ", None], dtype=pl.Object), "f")[0].to_list() == [None, None]
    half = pl.Series("title", ["half \ud83d emoji"], dtype=pl.Object)
    assert columns.text(half, "items.jsonl")[0].to_list() == ["half emoji"]
    with pytest.raises(ValueError, match="blank"):
        FreeTitle(title="\u200b\u00a0")


def test_a_title_without_tokens_is_said_before_training() -> None:
    """This tokenizer drops the replacement character."""
    with pytest.raises(ValueError, match="item 1 has title '\ufffd', for which its tokenizer has no tokens"):
        TitleTokenizer(load_tokenizer("minilm"), 5).spell(["lamp", "\ufffd"], 2)
