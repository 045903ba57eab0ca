"""modeling/generation/beam_search.py against Hugging Face beam search and brute force, on models that were trained to
end.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from index.trie import TokenTrie
from modeling.generation.beam_search import BeamSettings, Counts, GenerationError, Text
from modeling.generation.factory import beam_search_for

END = 2
VOCABULARY = 40
DECODERS = ("qwen3", "llama", "gemma3", "mistral", "gpt2", "opt")
ITEMS = [[5, 6], [5, 6, 7], [5, 8, 9, 10], [11], [12, 6], [12, 6], [13, 14, 15], [13, 14, 16, 17], [18, 19]]
"""Titles as tokens: one is the beginning of another, two are alike."""
PROMPTS = [[20, 21], [22, 23, 24, 25], [26], [27, 28, 21], [20], [25, 25, 24], [29, 30, 31, 20, 21], [28, 22]]


def _train(model: Any) -> Any:
    """Teach a model to write titles that end, differently after different prompts: scores are then far from uniform."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(120):
        rows = []
        for _ in range(16):
            number = int(torch.randint(len(PROMPTS), (1,), generator=generator))
            item = ITEMS[(number + int(torch.randint(3, (1,), generator=generator))) % len(ITEMS)]
            rows.append((PROMPTS[number], [*item, END]))
        width = max(len(prompt) + len(item) for prompt, item in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        labels = torch.full((len(rows), width), -100)
        for row, (prompt, item) in enumerate(rows):
            ids[row, : len(prompt) + len(item)] = torch.tensor([*prompt, *item])
            labels[row, len(prompt) : len(prompt) + len(item)] = torch.tensor(item)
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def trained(backbone_folder: Callable[[str], Path]) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def model(name: str) -> Any:
        if name not in made:
            from transformers import AutoConfig, AutoModelForCausalLM

            torch.manual_seed(3)
            config = AutoConfig.from_pretrained(str(backbone_folder(name)))
            config.vocab_size, config.attn_implementation = VOCABULARY, "sdpa"
            for dropout in ("attn_pdrop", "embd_pdrop", "resid_pdrop", "dropout"):
                if hasattr(config, dropout):
                    setattr(config, dropout, 0.0)
            made[name] = _train(AutoModelForCausalLM.from_config(config))
        return made[name]

    return model


def hugging_face(
    model: Any, prompts: list[list[int]], search: BeamSettings, trie: TokenTrie | None = None
) -> list[list[tuple[tuple[int, ...], float]]]:
    """Texts and scores of `generate`, prompts padded on the left as it wants them."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options: dict[str, Any] = {}
    if trie is not None:
        allowed = {(): {sequence[0] for sequence in ITEMS}}
        for sequence in ITEMS:
            for cut in range(1, len(sequence) + 1):
                allowed.setdefault(tuple(sequence[:cut]), set()).add([*sequence, END][cut])
        options["prefix_allowed_tokens_fn"] = lambda _, tokens: sorted(
            allowed.get(tuple(tokens[width:].tolist()), {END})
        )
    out = model.generate(
        input_ids=ids, attention_mask=mask, num_beams=search.beams, num_return_sequences=search.beams,
        max_new_tokens=search.max_new_tokens, do_sample=False, length_penalty=search.length_penalty,
        early_stopping=search.early_stopping, eos_token_id=END, pad_token_id=0, output_scores=True,
        return_dict_in_generate=True, use_cache=True, **options,
    )  # fmt: skip
    texts = []
    for tokens, score in zip(out.sequences[:, width:].tolist(), out.sequences_scores.tolist(), strict=True):
        text = tuple(itertools.takewhile(lambda token: token != END, tokens))
        texts.append((tuple(token for token in text if token), score))
    return [texts[row * search.beams : (row + 1) * search.beams] for row in range(len(prompts))]


def assert_same(ours: list[list[Text]], theirs: list[list[tuple[tuple[int, ...], float]]]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        real = [text for text in their if text[1] > -1e8]  # generate fills up with what it never found
        assert [text.tokens for text in our] == [tokens for tokens, _ in real]
        np.testing.assert_allclose([text.score for text in our], [score for _, score in real], atol=1e-4)


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize(
    "search",
    [
        BeamSettings(beams=4, max_new_tokens=8),
        BeamSettings(beams=3, max_new_tokens=8, length_penalty=0.0, early_stopping=True),
        BeamSettings(beams=1, max_new_tokens=3, length_penalty=0.7),
    ],
    ids=["wide", "early", "cut"],
)
def test_the_search_is_that_of_hugging_face(architecture: str, search: BeamSettings, trained: Any) -> None:
    """A batch of 8 prompts of different lengths, texts that end at different steps: same texts, same scores."""
    model = trained(architecture)
    if search.beams == 1:
        # `generate` takes another path, without scores, for one beam; ours is compared with itself below
        search = BeamSettings(beams=2, max_new_tokens=3, length_penalty=0.7)
    ours = beam_search_for(model, end_tokens=[END]).search(PROMPTS, search)
    assert_same(ours, hugging_face(model, PROMPTS, search))
    assert len({len(text.tokens) for texts in ours for text in texts}) > 1, "texts of one length prove little"


def test_along_a_trie_it_is_that_of_hugging_face_with_a_prefix_function(trained: Any) -> None:
    model, trie = trained("qwen3"), TokenTrie.build(ITEMS, END)
    search = BeamSettings(beams=4, max_new_tokens=8)
    ours = beam_search_for(model, end_tokens=[END]).search(PROMPTS, search, paths=trie.arrays())
    assert_same(ours, hugging_face(model, PROMPTS, search, trie))


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_a_prompt_alone_is_the_prompt_in_a_batch_and_a_prefix_read_once_is_a_prefix(
    architecture: str, trained: Any
) -> None:
    model, search = trained(architecture), BeamSettings(beams=3, max_new_tokens=8)
    whole = beam_search_for(model, end_tokens=[END])
    together = whole.search([[20, 21, *prompt] for prompt in PROMPTS], search)
    alone = [whole.search([[20, 21, *prompt]], search)[0] for prompt in PROMPTS]
    prefixed = beam_search_for(model, end_tokens=[END], prefix=[20, 21]).search(PROMPTS, search)
    for other in (alone, prefixed):
        assert [[text.tokens for text in texts] for texts in together] == [[t.tokens for t in texts] for texts in other]
        for ours, theirs in zip(together, other, strict=True):
            np.testing.assert_allclose([t.score for t in ours], [t.score for t in theirs], atol=1e-5)


def log_probability(model: Any, prompt: list[int], item: list[int]) -> float:
    ids = torch.tensor([[*prompt, *item, END]])
    with torch.inference_mode():
        logs = model(input_ids=ids).logits[0].log_softmax(-1)
    return sum(float(logs[place - 1, ids[0, place]]) for place in range(len(prompt), ids.shape[1]))


def test_as_many_beams_as_items_rank_like_brute_force(trained: Any) -> None:
    """Invariant 10: the log probability of every title, computed one by one, gives the same order and scores."""
    model, trie = trained("qwen3"), TokenTrie.build(ITEMS, END)
    search = BeamSettings(beams=len(ITEMS), max_new_tokens=6, length_penalty=0.0)
    texts = beam_search_for(model, end_tokens=[END]).search(PROMPTS, search, paths=trie.arrays())
    for prompt, found in zip(PROMPTS, texts, strict=True):
        scores = {tuple(item): log_probability(model, prompt, item) for item in ITEMS}
        expected = sorted(scores, key=lambda item: -scores[item])
        assert [text.tokens for text in found] == expected
        np.testing.assert_allclose([text.score for text in found], [scores[item] for item in expected], atol=1e-4)
        assert [trie.items(text.state) for text in found] == [trie.find(item) for item in expected]


def test_renormalized_scores_are_a_distribution_over_the_titles(trained: Any) -> None:
    trie = TokenTrie.build(ITEMS, END)
    search = BeamSettings(beams=len(ITEMS), max_new_tokens=6, length_penalty=0.0, renormalize=True)
    generator = beam_search_for(trained("llama"), end_tokens=[END])
    for texts in generator.search(PROMPTS, search, paths=trie.arrays()):
        assert sum(np.exp(text.score) for text in texts) == pytest.approx(1.0, abs=1e-4)


def test_a_text_whose_rest_is_determined_is_finished_without_the_model(trained: Any) -> None:
    """The same texts and scores as written to their ends, in fewer steps."""
    model, trie = trained("qwen3"), TokenTrie.build(ITEMS, END)
    search = BeamSettings(beams=len(ITEMS), max_new_tokens=6, length_penalty=0.0, renormalize=True)
    generator, counts = beam_search_for(model, end_tokens=[END]), Counts()
    texts = generator.search(PROMPTS, search, paths=trie.arrays(), counts=counts)
    assert counts.steps == 3, "what follows the third token of a title is determined"
    for prompt, found in zip(PROMPTS, texts, strict=True):
        assert sorted(text.tokens for text in found) == sorted(set(map(tuple, ITEMS)))
        for text in found:
            assert text.score == pytest.approx(log_among_children(model, prompt, list(text.tokens)), abs=1e-4)
            assert text.ended and trie.items(text.state) == trie.find(text.tokens) != []
    (few,) = generator.search(PROMPTS[:1], replace(search, beams=2), paths=trie.arrays())
    assert len(few) == 2 and all(text.ended for text in few)


def test_a_determined_text_is_not_lost_to_beginnings_that_divide(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two beams a third beginning has no place to run on; where it is a whole text already, it needs none."""
    generator = beam_search_for(trained("qwen3"), end_tokens=[END])
    log_V = torch.full((VOCABULARY,), -9.0)
    log_V[[11, 12, 13]] = torch.tensor([0.40, 0.35, 0.25]).log()  # every other choice is even
    monkeypatch.setattr(generator, "logits", lambda states_PH, wanted_A: log_V[wanted_A].expand(len(states_PH), -1))
    items = [[11, 21], [11, 22], [12, 21], [12, 22], [13, 21, 22]]
    search = BeamSettings(beams=2, max_new_tokens=6, length_penalty=0.0, renormalize=True)
    (found,) = generator.search(PROMPTS[:1], search, paths=TokenTrie.build(items, END).arrays())
    assert found[0].tokens == (13, 21, 22) and found[0].ended
    assert [np.exp(text.score) for text in found] == pytest.approx([0.25, 0.20])


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_among_children_the_head_is_asked_for_their_rows_alone(
    trained: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    generator, paths = beam_search_for(trained(name), end_tokens=[END]), TokenTrie.build(ITEMS, END).arrays()
    search, asked = BeamSettings(beams=4, max_new_tokens=6, length_penalty=0.0, renormalize=True), []
    found = generator.search(PROMPTS, search, paths=paths)
    logits = generator.logits

    def of_all(states_PH: Any, wanted_A: Any) -> Any:
        asked.append(wanted_A.tolist())
        return logits(states_PH)[:, wanted_A]

    monkeypatch.setattr(generator, "logits", of_all)
    expected = generator.search(PROMPTS, search, paths=paths)
    assert [[text.tokens for text in texts] for texts in found] == [[t.tokens for t in texts] for texts in expected]
    scores = [[text.score for text in texts] for texts in (*found, *expected)]
    np.testing.assert_allclose(scores[: len(found)], scores[len(found) :], atol=1e-5)
    assert sorted(asked[0]) == sorted({item[0] for item in ITEMS}) and max(map(len, asked)) < VOCABULARY / 2


def log_among_children(model: Any, prompt: list[int], item: list[int]) -> float:
    """Each token's probability divided among those of the items that begin alike."""
    text, total = [*item, END], 0.0
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *text]])).logits[0]
    for at, token in enumerate(text):
        children = sorted({[*other, END][at] for other in ITEMS if [*other, END][:at] == text[:at]})
        logs = logits[len(prompt) - 1 + at, children].log_softmax(-1)
        total += float(logs[children.index(token)])
    return total


def test_only_items_are_generated_and_each_once(trained: Any) -> None:
    trie, generator = TokenTrie.build(ITEMS, END), beam_search_for(trained("qwen3"), end_tokens=[END])
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, VOCABULARY, size=rng.integers(1, 9)).tolist() for _ in range(200)]
    for start in range(0, len(prompts), 20):
        for texts in generator.search(
            prompts[start : start + 20], BeamSettings(beams=5, max_new_tokens=6), paths=trie.arrays()
        ):
            assert len(texts) == len({text.tokens for text in texts}) == 5
            assert all(text.ended and trie.items(text.state) == trie.find(text.tokens) != [] for text in texts)


def test_the_prompt_is_read_once_and_steps_see_one_row_a_prompt(trained: Any) -> None:
    generator, shapes = beam_search_for(trained("qwen3"), end_tokens=[END]), []
    hook = generator.body.get_input_embeddings().register_forward_pre_hook(  # type: ignore[operator]
        lambda module, args: shapes.append(tuple(args[0].shape))
    )
    counts = Counts()
    generator.search(PROMPTS[:2], BeamSettings(beams=4, max_new_tokens=3), counts=counts)
    hook.remove()
    assert shapes[0] == (2, 4)
    assert set(shapes[1:]) <= {(2, 4), (1, 4)}, "rows are prompts, columns are beams"
    assert counts.prompt_tokens == 6 and counts.steps == 3


def test_layers_that_are_known_are_run_step_by_step(trained: Any) -> None:
    known = {name: beam_search_for(trained(name), end_tokens=[END])._stack for name in ("qwen3", "llama", "gemma3")}
    assert known["qwen3"] and known["llama"] and known["gemma3"] is None


@pytest.mark.parametrize("prefix", [(), (31, 30, 29)], ids=["no prefix", "prefix"])
@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_a_prompt_read_in_several_passes_is_the_prompt_read_in_one(
    architecture: str, prefix: tuple[int, ...], trained: Any
) -> None:
    generator = beam_search_for(trained(architecture), end_tokens=[END], prefix=prefix)
    search = BeamSettings(beams=4, max_new_tokens=6)
    at_once = generator.search(PROMPTS, search)
    for positions in (1, 2 * len(PROMPTS), 1000):
        in_pieces = generator.search(PROMPTS, search, pass_positions=positions)
        for one, other in zip(at_once, in_pieces, strict=True):
            assert [text.tokens for text in one] == [text.tokens for text in other]
            np.testing.assert_allclose([text.score for text in one], [text.score for text in other], atol=1e-4)


def test_no_pass_is_longer_than_asked_and_each_has_its_turn(trained: Any) -> None:
    generator = beam_search_for(trained("qwen3"), end_tokens=[END])
    passes: list[int] = []
    turns = 0
    held = False

    @contextlib.contextmanager
    def turn() -> Iterator[None]:
        nonlocal turns, held
        turns, held = turns + 1, True
        yield
        held = False

    def note(module: Any, args: Any) -> None:
        assert held, "a pass outside of a turn"
        passes.append(args[0].numel())

    hook = generator.body.get_input_embeddings().register_forward_pre_hook(note)  # type: ignore[operator]
    try:
        generator.search(PROMPTS, BeamSettings(beams=2, max_new_tokens=4), turn=turn, pass_positions=16)
    finally:
        hook.remove()
    longest = max(map(len, PROMPTS))
    assert len(passes) > longest // 2 and max(passes) <= 16
    assert turns == len(passes) + 4, "the head of every step has a turn too"


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("most", [None, 40])
def test_prompts_are_read_in_the_multiples_that_products_are_prepared_for(
    rows: int, most: int | None, trained: Any
) -> None:
    """And what is written stays the same."""
    prompts = (PROMPTS * rows)[:rows]
    generator = beam_search_for(trained("qwen3"), end_tokens=[END], prefix=(31, 30))
    search = BeamSettings(beams=3, max_new_tokens=5)
    wanted = generator.search(prompts, search, pass_positions=most)
    generator.multiple = 16
    read: list[int] = []
    hook = generator.body.get_input_embeddings().register_forward_pre_hook(  # type: ignore[operator]
        lambda module, args: read.append(args[0].numel())
    )
    try:
        found = generator.search(prompts, search, pass_positions=most)
    finally:
        hook.remove()
    assert [[text.tokens for text in texts] for texts in found] == [[text.tokens for text in texts] for texts in wanted]
    prompt_passes = [count for count in read if count > search.beams * rows]
    assert prompt_passes and all(count % 16 == 0 for count in prompt_passes)
    assert most is None or max(read) <= 48


def test_a_prompt_at_the_limit_of_positions_is_not_filled_up_beyond_it(trained: Any) -> None:
    model = trained("qwen3")
    generator = beam_search_for(model, end_tokens=[END], prefix=(31, 30))
    generator.multiple = 16
    limit = generator.limit
    assert limit is not None
    prompt = [1 + place % 20 for place in range(limit - 3)]
    read: list[int] = []
    hook = generator.body.get_input_embeddings().register_forward_pre_hook(  # type: ignore[operator]
        lambda module, args: read.append(args[0].numel())
    )
    try:
        generator.search([prompt], BeamSettings(beams=1, max_new_tokens=1))
    finally:
        hook.remove()
    assert read == [limit - 3]


def test_each_step_shows_the_best_beam_so_far_and_can_be_the_last(trained: Any) -> None:
    generator, seen = beam_search_for(trained("qwen3"), end_tokens=[END]), []
    search = BeamSettings(beams=4, max_new_tokens=6)
    texts = generator.search(PROMPTS[:1], search, on_step=lambda step, best: seen.append((step, best[0])))
    assert [step for step, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][1] == texts[0][0].tokens

    def stop(step: int, best: list[tuple[int, ...]]) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        generator.search(PROMPTS[:1], search, on_step=stop)


def test_what_cannot_be_generated_is_refused_in_one_sentence(trained: Any) -> None:
    generator = beam_search_for(trained("qwen3"), end_tokens=[END])
    with pytest.raises(GenerationError, match="a prompt is empty"):
        generator.search([[]], BeamSettings())
    with pytest.raises(GenerationError, match="may take 304 positions and the model has 256"):
        generator.search([[5] * 256], BeamSettings())
    with pytest.raises(GenerationError, match="beams is 0"):
        BeamSettings(beams=0)
    with pytest.raises(GenerationError, match="the trie holds no text"):
        generator.search([[5]], BeamSettings(), paths=TokenTrie(END).arrays())


@settings(max_examples=15, deadline=None)
@given(
    items=st.lists(st.lists(st.integers(5, 9), min_size=1, max_size=3), min_size=1, max_size=12),
    beams=st.integers(1, 6),
)
def test_any_catalog_gives_its_own_items_best_first(trained: Any, items: list[list[int]], beams: int) -> None:
    trie = TokenTrie.build(items, END)
    search = BeamSettings(beams=beams, max_new_tokens=4)
    texts = beam_search_for(trained("qwen3"), end_tokens=[END]).search([PROMPTS[0]], search, paths=trie.arrays())[0]
    assert 1 <= len(texts) <= beams
    assert {text.tokens for text in texts} <= {tuple(item) for item in items}
    assert [text.score for text in texts] == sorted((text.score for text in texts), reverse=True)
