"""Copying: what has a loss in a random text came before, and a model that was taught writes what it reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import Qwen3Config, Qwen3ForCausalLM

from training.loop import copy_task as copying
from training.loop.budget import OutOfTime, budget
from training.loop.copy_task import CopyingStage, random_texts, teach_copying
from training.loop.stages import run_stages

QUIET = Console(quiet=True)
END, WORDS = 2, 32


def test_what_has_a_loss_is_a_segment_that_came_before() -> None:
    ids_BT, again_BT = random_texts(np.random.default_rng(0), words=4000, end=END, segments=6)
    assert ids_BT.shape == again_BT.shape and 0.3 < float(again_BT.float().mean()) < 0.95
    for ids_T, again_T in zip(ids_BT.tolist(), again_BT.tolist(), strict=True):
        seen: list[list[int]] = []
        start = 0
        while start < len(ids_T):
            end = ids_T.index(END, start) + 1 if END in ids_T[start:] else len(ids_T)
            segment = ids_T[start:end]
            known = any(before[: len(segment)] == segment for before in seen)
            assert again_T[start:end] == [known] * len(segment)
            seen.append(segment)
            start = end


def _share_copied(model: Qwen3ForCausalLM) -> float:
    """Of tokens that are in a segment that came before, in new texts, those that the model says."""
    ids_BT, again_BT = random_texts(np.random.default_rng(9), words=WORDS, end=END, segments=1)
    with torch.inference_mode():
        said_BT = model.eval()(input_ids=ids_BT).logits.argmax(-1)
    return float((said_BT[:, :-1] == ids_BT[:, 1:])[again_BT[:, 1:]].float().mean())


def small_model(seed: int = 0) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=WORDS, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
            head_dim=16, intermediate_size=128, max_position_embeddings=128, tie_word_embeddings=True,
        )
    )  # fmt: skip


def test_a_model_that_was_taught_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "POSITIONS", 1000)
    monkeypatch.setattr(copying, "RATE", 5e-3)
    monkeypatch.setattr(copying, "SEGMENTS", 1)
    model = small_model()
    before = _share_copied(model)
    learned = teach_copying(model, end=END, positions=200_000, seed=0, bf16=False, console=QUIET)
    assert before < 0.2 and learned["segments"] == 1 and learned["accuracy"] > 0.6
    assert _share_copied(model) > 0.6, "it copies what it never saw"


def test_a_run_that_was_killed_later_does_not_learn_to_copy_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage(model: Qwen3ForCausalLM) -> CopyingStage:
        return CopyingStage(model, end=END, positions=6000, seed=0, bf16=False, console=QUIET)

    def weights(model: Qwen3ForCausalLM) -> list[torch.Tensor]:
        return [each.detach().clone() for each in model.parameters()]

    with budget(1e-9), pytest.raises(OutOfTime, match="starting the stage 'copying'"):
        run_stages([stage(small_model())], tmp_path, QUIET)
    taught = small_model()
    begun = weights(taught)
    report = run_stages([stage(taught)], tmp_path, QUIET)
    assert not torch.equal(begun[0], weights(taught)[0])

    monkeypatch.setattr(copying, "teach_copying", None)
    again = small_model()
    assert run_stages([stage(again)], tmp_path, QUIET) == report
    assert all(map(torch.equal, weights(again), weights(taught)))
