"""modeling/generation/encoder_decoder.py against Hugging Face: the same beams, whatever shares the batch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from index.trie import TokenTrie
from modeling.generation.beam_search import BeamSettings, Text
from modeling.generation.factory import beam_search_for

SIZES = (6, 6, 3)
STARTS = (1, 7, 13)
VOCABULARY = 16
PROMPTS = [[0, 1, 7, 13], [0, 2, 8, 14, 3, 9, 13], [0], [0, 6, 12, 15, 1, 8, 13, 4, 10, 14], [0, 3, 9, 13, 2, 8, 14]]


def items() -> list[list[int]]:
    """Forty names of three codes, two of them alike, not all prefixes in use."""
    rng = np.random.default_rng(0)
    names = [[start + int(rng.integers(size)) for start, size in zip(STARTS, SIZES, strict=True)] for _ in range(40)]
    return [*names, names[0]]


@pytest.fixture(scope="module")
def model() -> Any:
    """Random weights, large enough that positions, memory and scores are far from even."""
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=24, d_kv=12, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=2,
        dropout_rate=0.1, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    config.decoder_start_token_id = 0
    made = T5ForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "relative" in name or ".q." in name:
                weight.normal_(std=1.0)
    return made.eval()


def hugging_face(model: Any, prompts: list[list[int]], beams: int, length: int) -> list[list[tuple[list[int], float]]]:
    """Texts and scores of `generate` along the same names, prompts padded on the right."""
    allowed: dict[tuple[int, ...], set[int]] = {}
    for name in items():
        for cut in range(len(name)):
            allowed.setdefault(tuple(name[:cut]), set()).add(name[cut])
    width = max(map(len, prompts))
    ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts])
    mask = torch.tensor([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts])
    out = model.generate(
        input_ids=ids, attention_mask=mask, num_beams=beams, num_return_sequences=beams, max_new_tokens=length,
        do_sample=False, length_penalty=0.0, output_scores=True, return_dict_in_generate=True, use_cache=True,
        prefix_allowed_tokens_fn=lambda _, tokens: sorted(allowed[tuple(tokens[1:].tolist())]),
    )  # fmt: skip
    texts = list(zip(out.sequences[:, 1:].tolist(), out.sequences_scores.tolist(), strict=True))
    return [texts[row * beams : (row + 1) * beams] for row in range(len(prompts))]


def search(
    model: nn.Module, prompts: list[list[int]], beams: int, *, length: int = 3, pass_positions: int | None = None
) -> list[list[Text]]:
    paths = TokenTrie.build(items(), None).arrays()
    settings = BeamSettings(beams=beams, max_new_tokens=length, length_penalty=0.0)
    generator = beam_search_for(model, end_tokens=())
    return generator.search(prompts, settings, paths=paths, pass_positions=pass_positions)


def assert_alike(ours: list[list[Text]], others: list[list[Text]]) -> None:
    for one, other in zip(ours, others, strict=True):
        assert [text.tokens for text in one] == [text.tokens for text in other]
        np.testing.assert_allclose([text.score for text in one], [text.score for text in other], atol=1e-5)


@pytest.mark.parametrize(("beams", "length"), [(5, 3), (12, 3), (4, 2)])
def test_the_beams_are_those_of_hugging_face(model: Any, beams: int, length: int) -> None:
    """Five histories of different lengths in one batch, also cut before their end."""
    ours = search(model, PROMPTS, beams, length=length)
    theirs = hugging_face(model, PROMPTS, beams, length)
    for our, their in zip(ours, theirs, strict=True):
        assert [list(text.tokens) for text in our] == [tokens for tokens, _ in their]
        np.testing.assert_allclose([text.score for text in our], [score for _, score in their], atol=1e-4)
    assert len({texts[0].tokens for texts in ours}) > 1, "prompts that are all answered alike prove little"


def test_as_many_beams_as_names_rank_all_of_them_by_probability(model: Any) -> None:
    names = [list(name) for name in dict.fromkeys(map(tuple, items()))]
    (texts,) = search(model, [PROMPTS[3]], len(names))
    scores = []
    for name in names:
        with torch.no_grad():
            out = model(input_ids=torch.tensor([PROMPTS[3]]), decoder_input_ids=torch.tensor([[0, *name[:-1]]]))
        logs_LV = out.logits[0].log_softmax(-1)
        scores.append(float(logs_LV[torch.arange(len(name)), torch.tensor(name)].sum()))
    order = np.argsort(scores)[::-1]
    assert [list(text.tokens) for text in texts] == [names[at] for at in order]
    np.testing.assert_allclose([text.score for text in texts], np.array(scores)[order], atol=1e-4)


def test_a_prompt_alone_is_the_prompt_in_a_batch_in_one_pass_or_several(model: Any) -> None:
    together = search(model, PROMPTS, 6)
    assert_alike(together, [search(model, [prompt], 6)[0] for prompt in PROMPTS])
    assert_alike(together, search(model, PROMPTS, 6, pass_positions=12))
    assert_alike(together, search(model, PROMPTS[::-1], 6)[::-1])


def test_every_text_names_its_items_and_order_matters(model: Any) -> None:
    trie = TokenTrie.build(items(), None)
    forward, backward = search(model, [[0, 1, 7, 13, 2, 8, 14], [0, 2, 8, 14, 1, 7, 13]], 6)
    for text in (*forward, *backward):
        assert not text.ended and items()[trie.items(text.state)[0]] == list(text.tokens)
    assert abs(forward[0].score - backward[0].score) > 1e-3


@pytest.mark.gpu
def test_on_a_gpu_the_beams_are_those_of_the_cpu(model: Any) -> None:
    ours, theirs = search(model, PROMPTS, 6), search(copy.deepcopy(model).to("cuda"), PROMPTS, 6)
    for one, other in zip(ours, theirs, strict=True):
        assert [text.tokens for text in one] == [text.tokens for text in other]
        np.testing.assert_allclose([text.score for text in one], [text.score for text in other], atol=1e-4)
