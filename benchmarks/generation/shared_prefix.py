"""Time of scoring candidates after one history: a prefix that is read once, against the naive padded batch.

A hundred candidates after a history of twenty titles, by the yes and no of `tallrec`. `naive` reads a whole text for
every candidate, padded, ten texts a batch; `shared` is the project's; `tokens` is one causal forward over the history
and the tokens of all candidates, which any way of reading them takes at least. Logits of the first two are compared
before any time is printed. Rounds alternate, the medians are quoted; the last line is one JSON object.

    python -m benchmarks.generation.shared_prefix --data DIR [--backbone smollm2] [--layers 8] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lib.results import ResultFile
from modeling.backbone.loading import load_tokenizer, resolve_source
from modeling.generation.item_tokenizer import TitleTokenizer
from modeling.generation.shared_prefix import SharedPrefixScorer
from modeling.methods.tallrec import YesNoPrompt
from training.data.dataset import Dataset, read_dataset
from training.recipes.tallrec import INSTRUCTION

TITLE_TOKENS, BATCH = 16, 10
Texts = list[list[int]]

RESULT = ResultFile(__file__, __doc__)


def loaded(backbone: str, layers: int) -> tuple[Any, Any]:
    """The first layers of a model with its head, and its tokenizer."""
    from transformers import AutoModelForCausalLM

    folder = resolve_source(backbone)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    body = model.base_model
    body.layers = body.layers[:layers]
    body.config.num_hidden_layers = layers
    return model, load_tokenizer(backbone)


def question(data: Dataset, tokenizer: Any, titles: int, candidates: int) -> tuple[YesNoPrompt, list[int], Texts]:
    """Prompt, shared tokens and candidates of a user with enough items."""
    user = int(np.argmax(data.lengths_U >= titles))
    history = data.rows[data.offsets_U1[user] :][:titles]
    others = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(data.n_items), history))[:candidates]
    spelling = TitleTokenizer(tokenizer, TITLE_TOKENS)
    names = [np.asarray(item.tokens) for item in spelling.read([data.titles[row] for row in [*history, *others]])]
    prompt = YesNoPrompt.of(tokenizer, INSTRUCTION, ("Yes", "No"))
    return prompt, prompt.shared(names[:titles], []), [prompt.candidate(name) for name in names[titles:]]


@torch.inference_mode()
def naive(model: Any, texts: Texts, asked: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Logits behind every text, padded on the right."""
    found = []
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        width = max(map(len, part))
        ids = torch.tensor([text + [0] * (width - len(text)) for text in part])
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        last = states[torch.arange(len(part)), torch.tensor([len(text) - 1 for text in part])]
        found.append(torch.nn.functional.linear(last, model.get_output_embeddings().weight[list(asked)]).numpy())
    return np.concatenate(found)


def timed(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way, in alternating rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


def main() -> None:
    """Compare, then time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", default="smollm2")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--titles", type=int, default=20)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    RESULT.add_option(parser)
    given = parser.parse_args()
    model, tokenizer = loaded(given.backbone, given.layers)
    prompt, shared, candidates = question(read_dataset(given.data), tokenizer, given.titles, given.candidates)
    scorer = SharedPrefixScorer(model, prompt.answers, prompt.prefix)
    whole = [[*prompt.prefix, *shared, *each] for each in candidates]
    flat = torch.tensor([[*prompt.prefix, *shared, *(token for each in candidates for token in each)]])
    difference = float(np.abs(naive(model, whole, prompt.answers) - scorer.logits(shared, candidates)).max())
    if difference > 1e-3:
        raise SystemExit(f"logits differ by {difference:.2g}; no times are printed")

    def tokens() -> None:
        with torch.inference_mode():
            model.base_model(input_ids=flat, use_cache=False)

    seconds = timed(
        {"shared": lambda: scorer.logits(shared, candidates),
         "served": lambda: scorer.logits(shared, candidates, turn=lambda: nullcontext()),
         "tokens": tokens,
         "naive": lambda: naive(model, whole, prompt.answers)},
        given.rounds,
    )  # fmt: skip
    figures = {
        "positions_naive": sum(map(len, whole)), "positions_shared": flat.numel(), "difference": difference,
        "of_naive": seconds["shared"] / seconds["naive"], "of_tokens": seconds["shared"] / seconds["tokens"],
        "served_of_tokens": seconds["served"] / seconds["tokens"],
    }  # fmt: skip
    asked = {name: value for name, value in vars(given).items() if name != "result"}
    RESULT.publish({**asked, "data": given.data.name, **seconds, **figures}, given.result)


if __name__ == "__main__":
    main()
