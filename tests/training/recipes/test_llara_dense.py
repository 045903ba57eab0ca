"""Llama2Vec: two prompts behind a text, kept apart, name its words and the next title's; their states are vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from modeling.artifact.verified import files_of
from modeling.backbone.loading import BackboneError, load_backbone
from modeling.encoder.build import build_model
from modeling.methods.dense import Artifact, load_artifact
from modeling.spec import BackboneSpec
from testing.datasets import QUIET
from testing.models import TITLES, backbone_folder, widened
from training.adaptation.passages import Passage, PassageBatch, Summaries, passages_of
from training.adaptation.summaries import (
    bag_loss,
    extend,
    named,
    passage_loss,
    prove_apart,
    states_of,
    summary_logits,
    train_rows_only,
)
from training.data.dataset import Dataset
from training.data.splits import leave_one_out
from training.objectives.base import Candidates, ObjectiveSpec, objective_class
from training.recipes import RecipeError, get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder"]  # a fixture

SMALL = [
    *("items.dim=16", "optimizer.epochs=1", "optimizer.positions=60", "history.limit=4", "history.title_tokens=6"),
    *("method.adaptation.passage_steps=25", "method.adaptation.texts=16", "method.adaptation.rate=0.02"),
    "optimizer.user_windows=2",
]
BEHIND = Summaries(own=[30, 31, 32], following=[40, 41, 42, 43], count=2)
LAMP, CHAIR = (
    Passage(np.array([1, 5, 6]), np.array([5, 6]), np.array([9])),
    Passage(np.array([1, 7, 8, 4, 7]), np.array([4, 7, 8]), np.array([5, 6])),
)
Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(ring: Dataset, backbone_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "llara_dense"
    run(get_recipe("llara_dense", SMALL, backbone=str(backbone_folder("qwen3"))), ring, RunOptions(out=out), QUIET)
    return out


@pytest.fixture
def artifact(folder: Path) -> Artifact:
    return load_artifact(folder)


@pytest.fixture
def body(backbone_folder: Folder) -> Any:
    model, _ = load_backbone(BackboneSpec(source="x", dropout=0.0), folder=files_of(backbone_folder("qwen3")))
    return widened(model)


def changed(batch: PassageBatch, row: int, places: list[int]) -> PassageBatch:
    tokens_BT = batch.tokens_BT.clone()
    tokens_BT[row, places] = 77
    return replace(batch, tokens_BT=tokens_BT)


def test_the_second_prompt_sees_the_text_and_not_the_first(body: Any) -> None:
    batch = PassageBatch.of([LAMP, CHAIR], BEHIND)
    assert batch.own_BK.tolist() == [[4, 5], [6, 7]] and batch.following_BK.tolist() == [[8, 9], [10, 11]]
    assert batch.positions_BT[0, :10].tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6]
    with torch.inference_mode():
        states_BTH = states_of(body, batch)
        first = (states_of(body, changed(batch, 0, [3, 4, 5])) - states_BTH)[0].abs().amax(-1)
        text = (states_of(body, changed(batch, 0, [1])) - states_BTH)[0].abs().amax(-1)
        alone = states_of(body, PassageBatch.of([LAMP], BEHIND))[0]
        bare = body(input_ids=torch.tensor([[1, 5, 6]])).last_hidden_state[0]
        only_next = body(input_ids=torch.tensor([[1, 5, 6, *BEHIND.following]])).last_hidden_state[0]
    assert first[[0, 1, 2, 6, 7, 8, 9]].max() < 1e-5 and first[3:6].min() > 1e-3
    assert text[1:10].min() > 1e-3
    torch.testing.assert_close(states_BTH[0, :10], alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(bare, alone[:3], atol=1e-4, rtol=0)
    torch.testing.assert_close(only_next[3:], alone[6:10], atol=1e-4, rtol=0)
    prove_apart(body, batch, BEHIND)


def test_a_mask_that_keeps_nothing_apart_is_refused(body: Any) -> None:
    batch = PassageBatch.of([LAMP, CHAIR], BEHIND)
    causal_BTT = torch.ones_like(batch.sees_BTT).tril()
    with pytest.raises(BackboneError, match="does not keep two prompts behind a text apart"):
        prove_apart(body, replace(batch, sees_BTT=causal_BTT), BEHIND)


@torch.no_grad()
def test_a_bag_counts_a_word_once_and_takes_the_highest_of_the_states() -> None:
    states_BTH = torch.randn(1, 6, 8)
    head = torch.nn.Linear(8, 20, bias=False)
    logits_BV = summary_logits(states_BTH, head, torch.tensor([[2, 4]]))
    torch.testing.assert_close(logits_BV[0], torch.maximum(head(states_BTH[0, 2]), head(states_BTH[0, 4])))
    once, twice = (bag_loss(logits_BV, [torch.tensor(ids)]) for ids in ([3, 7], [3, 7, 7, 7]))
    assert float(once) == pytest.approx(float(twice), abs=1e-6)
    expected = -F.log_softmax(logits_BV, -1)[0, [3, 7]].mean() / 10
    assert float(once) == pytest.approx(float(expected), abs=1e-6)


@torch.no_grad()
def test_the_loss_is_that_of_the_text_and_half_of_both_bags() -> None:
    batch = PassageBatch.of([LAMP, CHAIR], BEHIND)
    states_BTH, head = torch.randn(*batch.tokens_BT.shape, 8), torch.nn.Linear(8, 60, bias=False)
    log_BTV = F.log_softmax(head(states_BTH), -1)
    text = [-log_BTV[row, place - 1, passage.text[place]]
            for row, passage in enumerate((LAMP, CHAIR)) for place in range(1, len(passage.text))]  # fmt: skip
    bags = [
        bag_loss(summary_logits(states_BTH, head, places), words)
        for places, words in ((batch.own_BK, batch.own), (batch.following_BK, batch.following))
    ]
    expected = torch.stack(text).mean() + sum(bags) / 2
    assert float(passage_loss(states_BTH, head, batch)) == pytest.approx(float(expected), abs=1e-5)


def test_named_words_are_the_share_among_the_top_fifty() -> None:
    logits_BV = torch.arange(100.0)[None]
    assert named(logits_BV, [torch.tensor([99, 50, 49, 3])]) == 0.5


def test_new_rows_are_trained_and_no_others(backbone_folder: Folder) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(backbone_folder("qwen3")))
    before = model.get_input_embeddings().weight.detach().clone()
    extend(model, [300, 301])
    table = cast(Any, train_rows_only(model.base_model, [300, 301]))
    assert len(table) == 302 and torch.equal(table[:300], before) and not torch.equal(table[300], table[301])
    model(input_ids=torch.tensor([[5, 300, 301]])).logits.sum().backward()
    assert not table.grad[:300].any() and table.grad[300:].abs().sum(1).min() > 0


def test_passages_come_from_training_histories_alone(ring: Dataset, backbone_folder: Folder) -> None:
    recipe = get_recipe("llara_dense", SMALL, backbone=str(backbone_folder("qwen3")))

    class Numbered:
        """Every title a token of its own, so that items can be told from tokens."""

        wrap = ([1], [])

        def __call__(self, titles: Any) -> list[list[int]]:
            return [[100 + row] for row in range(len(titles))]

        def fixed(self, texts: Any) -> list[list[int]]:
            return [[2] for _ in texts]

    split = leave_one_out(ring)
    found = passages_of(recipe, split, "train", cast(Any, Numbered()), seed=0)
    told = {(*(token - 100 for token in each.text[1::2]), int(each.following[0]) - 100) for each in
            (*found.trained, *found.held_out)}  # fmt: skip
    runs = {tuple(rows[start:stop].tolist()) for rows in split.train_rows("train")
            for stop in range(2, len(rows) + 1) for start in range(stop - 1)}  # fmt: skip
    assert told <= runs and {len(each) for each in told} >= {2, 3, 4}
    assert all(set(each.own) == set(each.text[1::2]) for each in found.trained)


def test_the_stage_learned_and_its_tokens_are_in_the_artifact(
    artifact: Artifact, folder: Path, backbone_folder: Folder
) -> None:
    report = artifact.manifest.training["stages"]["summaries"]
    assert report["steps"] == 25 and report["new_words"] == 16
    assert report["after"]["loss"] < report["before"]["loss"] - 0.1
    for words in ("own", "next"):
        name = f"{words}_words_in_top_50"
        assert report["after"][name] > max(0.5, report["before"][name])
    stored, given = (load_file(at / "model.safetensors") for at in (folder / "backbone", backbone_folder("qwen3")))
    assert not any("lora" in name or "lm_head" in name for name in stored)
    table = next(weight for name, weight in stored.items() if "embed_tokens" in name)
    assert torch.equal(table[: len(table) - 16][:20], given["model.embed_tokens.weight"][:20])
    found = artifact.record.capabilities
    assert found.causal and not (found.every_boundary or found.packed or found.prefix_reuse)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_vector_is_the_mean_of_the_last_eight_states_whatever_the_padding(artifact: Artifact, side: str) -> None:
    encoder = artifact.encoder
    prompts = [encoder.prepare(rows) for rows in ([3], [0, 5, 7, 2], [1, 2])]
    batch = encoder.collate(prompts, padding_side=side)
    with torch.inference_mode():
        states_BTH = encoder.hidden(batch)
        pooled_BH = encoder.pooling(states_BTH, batch.spans)
        for row, prompt in enumerate(prompts):
            stop = batch.shape[1] if side == "left" else prompt.length
            torch.testing.assert_close(pooled_BH[row], states_BTH[row, stop - 8 : stop].mean(0))
        together = encoder(batch).numpy()
    np.testing.assert_allclose(together, [encoder.encode([prompt])[0] for prompt in prompts], atol=1e-4)


def test_histories_and_items_end_in_prompts_of_their_own_and_ranks_depend_on_it(artifact: Artifact) -> None:
    encoder = artifact.encoder
    items = cast(Any, encoder)._item_prompts
    assert not set(items.suffix[-8:]) & set(encoder.prompts.suffix[-8:])
    assert items.build([3]).values_T[-8:].tolist() == items.suffix[-8:].tolist()
    own_ND = encoder.items.vectors().detach().numpy()
    rows = [0, 1, 2, 3, 4, 5, 6, 7]
    histories = [[row, row + 1] for row in rows]
    asked = encoder.encode([encoder.prepare(each) for each in histories]) @ own_ND.T
    encoder.prompts.suffix = items.suffix
    swapped = encoder.encode([encoder.prepare(each) for each in histories]) @ own_ND.T
    assert (np.argsort(asked) != np.argsort(swapped)).any()


def test_the_target_of_a_history_is_its_own_place_among_the_items_of_the_batch() -> None:
    torch.manual_seed(0)
    users_PD, table_ND = torch.randn(4, 8), torch.randn(9, 8)
    targets_P = torch.tensor([6, 2, 8, 0])

    class Items:
        def all(self) -> Tensor:
            return table_ND

        def of(self, rows_R: Tensor) -> Tensor:
            return table_ND[rows_R]

    candidates = Candidates(np.ones(9, np.int64), np.ones(9, bool), np.full(9, 1 / 9))
    loss = objective_class("in_batch")(ObjectiveSpec(kind="in_batch", logq=False), candidates)
    found = loss(users_PD, Items(), targets_P)
    expected = F.cross_entropy(users_PD @ table_ND[targets_P].T, torch.arange(4), reduction="sum")
    torch.testing.assert_close(found, expected)


def test_one_end_token_can_be_pooled_behind_the_closing_texts(
    ring: Dataset, backbone_folder: Folder, tmp_path: Path
) -> None:
    recipe = get_recipe(
        "llara_dense", [*SMALL, "pooling.kind=eos", "method.adaptation.passage_steps=2"],
        backbone=str(backbone_folder("qwen3")),
    )  # fmt: skip
    run(recipe, ring, RunOptions(out=tmp_path / "eos"), QUIET)
    found = load_artifact(tmp_path / "eos")
    assert found.manifest.training["stages"]["summaries"]["new_words"] == 0
    suffixes = found.encoder.prompts.suffix, cast(Any, found.encoder)._item_prompts.suffix
    assert suffixes[0][-1] == suffixes[1][-1] == 2 and suffixes[0].tolist() != suffixes[1].tolist()


def test_a_backbone_without_the_new_tokens_is_refused(backbone_folder: Folder) -> None:
    recipe = get_recipe("llara_dense", SMALL, backbone=str(backbone_folder("qwen3")))
    with pytest.raises(BackboneError, match="has not been extended by them"):
        build_model(recipe, catalog_size=len(TITLES), titles=TITLES)


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("llara_dense", ["backbone.attention=bidirectional"], "backbone.attention='causal' are needed"),
        ("llara_dense", ["pooling.kind=mean"], "pooling.kind 'eos' or 'end_n'"),
        ("llara_dense", ["method.adaptation.masked_steps=3"], "a way of adaptation of their own"),
        ("llm2vec", ["history.closing=so:"], "closing has no effect"),
        ("anyo", ["pooling.kind=end_n"], "sums up a text"),
    ],
)
def test_summaries_that_cannot_be_are_refused(recipe: str, settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        get_recipe(recipe, settings)
