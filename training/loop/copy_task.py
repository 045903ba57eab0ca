"""Teaches a small language model to copy, which a pretrained one can and one that read only a catalog's texts cannot.

In such texts nothing comes twice, so a model trained on them knows titles by heart and never looks back: asked to
repeat one of some titles it writes a popular one. Here it reads texts of random tokens in which a few segments come
again and again. Only who looks for the earlier place (an induction head, Olsson et al. 2022) knows what follows, and
where one ends, that the next begins as one of them did. It begins with one segment a text, because attention over a few
tokens is found soon and over hundreds hardly ever, and goes on to more as soon as most of what can be known is right.

Shape legend: B texts, T tokens, P tokens with a loss, V vocabulary, H width.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from modeling.artifact.tensor_files import save_tensors
from modeling.encoder.build import trainable
from training.loop.budget import check_time
from training.loop.trainer import WEIGHTS, load_trained

POSITIONS = 2000
"""Read in a step."""
RATE, WARMUP = 3e-3, 50
SHORTEST, LONGEST = 2, 6
"""Tokens of a segment, its end not counted."""
SEGMENTS = 40
"""Most segments of a text, at the end of the way: 248 positions."""
RIGHT, STEPS = 0.7, 20
"""Share of tokens that has to be right over so many steps before texts get longer; a fifth are first ones, guesses."""


@dataclass
class CopyingStage:
    """The stage of a training run that teaches a model to copy; see `teach_copying` for the fields."""

    model: nn.Module
    end: int
    positions: int
    seed: int
    bf16: bool
    console: Console
    name: str = "copying"
    objective: str = "next-token cross-entropy over repeated segments of random tokens"

    def run(self, work: Path) -> dict[str, Any]:
        """Teach, and keep the weights; figures as `teach_copying` gives them."""
        learned = teach_copying(
            self.model, end=self.end, positions=self.positions, seed=self.seed, bf16=self.bf16, console=self.console
        )
        self.console.print(f"copying: {learned['accuracy']:.1%} of random tokens are right")
        save_tensors(trainable(self.model), work / WEIGHTS)
        return learned

    def restore(self, work: Path) -> None:
        """Take the weights that it ended with."""
        load_trained(self.model, work)


def teach_copying(
    model: nn.Module, *, end: int, positions: int, seed: int, bf16: bool, console: Console
) -> dict[str, float]:
    """Train all of ``model`` on texts of random tokens.

    Args:
        model: a Hugging Face model for causal language modelling; its head has no bias.
        end: closes every segment.
        positions: to be read in all.
        seed: of the texts.
        bf16: mixed precision.
        console: for progress.

    Returns:
        ``segments`` of the longest texts reached, and ``accuracy`` over the last steps: the share of the tokens of
        segments that came before that is right; first ones are guesses.
    """
    rng, decoder = np.random.default_rng([seed, 7]), cast(Any, model).get_decoder()
    head_VH = cast(Any, model).get_output_embeddings().weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    segments, right, read, training = 1, [0.0], 0, model.training
    model.train()
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("learning to copy", total=positions)
        for step in itertools.count(1):
            if read >= positions:
                break
            ids_BT, again_BT = (
                each.to(head_VH.device) for each in random_texts(rng, words=len(head_VH), end=end, segments=segments)
            )
            targets_P = ids_BT[:, 1:][again_BT[:, 1:]]
            with torch.autocast(head_VH.device.type, torch.bfloat16, enabled=bf16):
                states_BTH: Tensor = decoder(input_ids=ids_BT[:, :-1], use_cache=False).last_hidden_state
                logits_PV = F.linear(states_BTH[again_BT[:, 1:]], head_VH).float()
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, step / WARMUP)
            optimizer.zero_grad()
            F.cross_entropy(logits_PV, targets_P).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            right = [*right, float((logits_PV.argmax(-1) == targets_P).float().mean())][-STEPS:]
            if len(right) == STEPS and np.mean(right) > RIGHT and segments < SEGMENTS:
                segments, right = min(SEGMENTS, max(segments + 1, segments * 5 // 4)), []
            read += ids_BT.numel()
            bar.update(task, completed=read)
            check_time("learning to copy")
    model.train(training)
    return {"segments": segments, "accuracy": float(np.mean(right or [RIGHT]))}


def random_texts(rng: np.random.Generator, *, words: int, end: int, segments: int) -> tuple[Tensor, Tensor]:
    """Texts of up to ``segments`` segments in any order and again: token ids [B, T], and whether a token is in a
    segment that came before [B, T]. Of that all but the first token can be known."""
    length = 9 + 6 * segments
    texts = [_random_text(rng, words, end, int(rng.integers(1, segments + 1)), length)
             for _ in range(max(1, POSITIONS // length))]  # fmt: skip
    ids_BT, again_BT = zip(*texts, strict=True)
    return torch.from_numpy(np.stack(ids_BT)), torch.from_numpy(np.stack(again_BT))


def _random_text(
    rng: np.random.Generator, words: int, end: int, segments: int, length: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    lengths = rng.integers(SHORTEST, LONGEST + 1, segments)
    known = [np.append(rng.integers(words, size=count), end) for count in lengths]
    order = rng.integers(segments, size=length // SHORTEST)
    again = np.ones(len(order), bool)
    again[np.unique(order, return_index=True)[1]] = False
    ids_T = np.concatenate([known[place] for place in order])[:length]
    return ids_T, np.repeat(again, lengths[order] + 1)[:length]
