"""Teaches a small language model to choose a line by what stands in it, once it can copy (`training.copying`).

To answer a LLaRA prompt a model has to find the candidate that goes with the history and to write its title from the
beginning, though what tells that it does, the slot, comes after the title. A pretrained model has learned from text to
look up what was said; one that read only titles has not, and so begins its answers as the catalog does. Here it reads
prompts of the recipe's own form, with titles of random tokens: one candidate has a slot that the history has too, and
is the answer. At every slot it says the first token of the title before it as well. Without that, nothing that is known
where the answer begins says how the candidate does, and it was not learned in ten times the steps.

It begins with two candidates and a history of one, and goes on to more as soon as most answers begin right.

Shape legend: B prompts, T tokens, P tokens with a loss, V vocabulary, H width.
"""

from __future__ import annotations

import itertools
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from modeling.choosing_writer import ChoicePrompt
from modeling.generator import with_slots
from training.choosing import ChoosingModule
from training.writing import IGNORED

POSITIONS = 2500
"""Read in a step, about."""
RATE, WARMUP = 2e-3, 50
LONGEST = 6
"""Tokens of a title at most."""
REPEATED = 0.3
"""Share of prompts in which the title of the answer is in the history too, and not its slot alone."""
RIGHT, STEPS = 0.7, 20
"""Share of answers whose first token has to be right over so many steps before prompts get longer."""


def teach_choosing(
    module: ChoosingModule, *, history: int, positions: int, seed: int, bf16: bool, console: Console
) -> dict[str, float]:
    """Train the model and the map of item vectors on prompts with random titles and the catalog's item vectors.

    Args:
        module: what is to be trained on real prompts afterwards.
        history: most items of a history.
        positions: to be read in all.
        seed: of the prompts.
        bf16: mixed precision.
        console: for progress.

    Returns:
        ``candidates`` and ``history`` of the longest prompts reached, and ``accuracy`` over the last steps: the share
        of answers whose first token is right.
    """
    rng, model = np.random.default_rng([seed, 8]), cast(Any, module.model)
    words, head_VH = model.get_input_embeddings(), model.get_output_embeddings().weight
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    shown, read_items, right, read, training = 2, 1, [0.0], 0, module.training
    module.train()
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("learning to look up", total=positions)
        for step in itertools.count(1):
            if read >= positions:
                break
            ids_BT, targets_BT, first_BT = (
                each.to(head_VH.device)
                for each in lookups(rng, module.prompt, len(module.names), candidates=shown, history=read_items)
            )
            asked_BT = targets_BT != IGNORED
            with torch.autocast(head_VH.device.type, torch.bfloat16, enabled=bf16):
                inputs_BTH = with_slots(words, module.slots(), ids_BT)
                states_BTH: Tensor = model.get_decoder()(inputs_embeds=inputs_BTH, use_cache=False).last_hidden_state
                logits_PV = F.linear(states_BTH[asked_BT], head_VH).float()
            targets_P, answer_P = targets_BT[asked_BT], ids_BT[asked_BT] < module.prompt.words
            losses_P = F.cross_entropy(logits_PV, targets_P, reduction="none")
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, step / WARMUP)
            optimizer.zero_grad()
            (losses_P[answer_P].mean() + losses_P[~answer_P].mean()).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            right_P = logits_PV.argmax(-1) == targets_P
            right = [*right, float(right_P[first_BT[asked_BT]].float().mean())][-STEPS:]
            if len(right) == STEPS and np.mean(right) > RIGHT and (shown, read_items) != (module.candidates, history):
                shown = min(module.candidates, max(shown + 1, shown * 5 // 4))
                read_items, right = min(history, read_items + 1), []
            read += ids_BT.numel()
            bar.update(task, completed=read)
    module.train(training)
    return {"candidates": shown, "history": read_items, "accuracy": float(np.mean(right or [RIGHT]))}


def lookups(
    rng: np.random.Generator, prompt: ChoicePrompt, items: int, *, candidates: int, history: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts over the slots of ``items`` items: token ids [B, T], what is to be said after each [B, T] (``IGNORED``
    where nothing is), and where an answer begins [B, T]."""
    count = max(4, POSITIONS // (9 * (candidates + history) + 12))
    texts = [_lookup(rng, prompt, items, candidates, int(rng.integers(1, history + 1))) for _ in range(count)]
    shape = (count, max(len(ids) for ids, _, _ in texts))
    ids_BT, targets_BT = np.full(shape, prompt.end, np.int64), np.full(shape, IGNORED, np.int64)
    first_BT = np.zeros(shape, bool)
    for row, (ids_T, targets_T, first) in enumerate(texts):
        ids_BT[row, : len(ids_T)], targets_BT[row, : len(ids_T)], first_BT[row, first] = ids_T, targets_T, True
    return torch.from_numpy(ids_BT), torch.from_numpy(targets_BT), torch.from_numpy(first_BT)


def _lookup(
    rng: np.random.Generator, prompt: ChoicePrompt, items: int, candidates: int, history: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Ids, targets, and the place where the answer begins."""
    history = min(history, max(1, items // 2))
    candidates = min(candidates, items - history)
    slots = 1 + rng.choice(items, history + candidates, replace=False)
    titles = [
        rng.integers(prompt.words, size=int(rng.integers(1, LONGEST + 1))).astype(np.int32) for _ in range(len(slots))
    ]
    known, chosen = int(rng.integers(history)), history + int(rng.integers(candidates))
    slots[chosen] = slots[known]
    if rng.random() < REPEATED:
        titles[chosen] = titles[known]
    named = list(zip(titles, slots.tolist(), strict=True))
    read = [*prompt.prefix, *prompt.items(named[:history]), *prompt.candidates(named[history:])]
    answer = prompt.answer(titles[chosen])
    ids_T = np.array([*read, *answer[:-1]], np.int64)
    targets_T = np.full(len(ids_T), IGNORED, np.int64)
    targets_T[np.flatnonzero(ids_T >= prompt.words)] = [title[0] for title in titles]
    targets_T[len(read) - 1 :] = answer
    return ids_T, targets_T, len(read) - 1
