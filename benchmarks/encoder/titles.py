"""Titles a second that a language model reads for grounding: by its plain forward, and beginnings shared.

    python -m benchmarks.encoder.titles --data DIR [--backbone smollm2] [--titles 200] [--title-tokens 16] [--rounds 3]

The titles stand in runs of a catalog in order of its tokens, as they are read, so that as many beginnings are shared as
in the whole catalog. Plain: Hugging Face's forward in fp32, batches of 64 titles of like length. Then the forward of
`modeling.inference.text_forward` in fp32 and bf16. All take turns, on one thread, the first round is left out; medians
of processor time, which other work lengthens less than the clock. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from benchmarks.lib.results import ResultFile
from modeling.backbone.loading import load_text_model, load_tokenizer
from modeling.generation.item_tokenizer import TitleTokenizer
from modeling.inference.text_forward import TextForward
from training.cli_common import open_dataset

RUN, BATCH = 50, 64
FORMS = {"beginnings shared, fp32": torch.float32, "beginnings shared, bf16": torch.bfloat16}
PLAIN = "plain, fp32"
Read = Callable[[], NDArray[np.float32]]

RESULT = ResultFile(__file__, __doc__)


def runs_of(texts: list[list[int]], count: int) -> list[list[int]]:
    """So many texts, in runs of the catalog's order that begin evenly apart."""
    ordered, runs = sorted(texts), max(1, count // RUN)
    starts = np.linspace(0, max(0, len(ordered) - RUN), runs).astype(int).tolist()
    return [text for start in starts for text in ordered[start : start + RUN]]


@torch.inference_mode()
def plain(body: nn.Module, texts: list[list[int]]) -> NDArray[np.float32]:
    """Last states [N, H]; batches of texts of like length, padded."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    found = np.empty((len(texts), int(cast(Any, body).config.hidden_size)), np.float32)
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH]
        lengths = [len(texts[number]) for number in numbers]
        ids_BT = torch.zeros(len(numbers), max(lengths), dtype=torch.long)
        for row, number in enumerate(numbers):
            ids_BT[row, : lengths[row]] = torch.tensor(texts[number])
        states_BTH = body(input_ids=ids_BT, use_cache=False).last_hidden_state
        found[numbers] = states_BTH[torch.arange(len(numbers)), torch.tensor(lengths) - 1].numpy()
    return found


def rows_of(ways: dict[str, Read], rounds: int) -> dict[str, dict[str, Any]]:
    """Titles a second of processor time and distances from the plain states, as shares of their length."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    states: dict[str, NDArray[np.float32]] = {}
    for number in range(rounds + 1):
        for name, read in ways.items():
            started = time.process_time()
            states[name] = read()
            if number:
                spent[name].append(time.process_time() - started)
    expected = states[PLAIN]
    size, first = len(expected), statistics.median(spent[PLAIN])
    return {
        name: {
            "titles_per_s": round(size / (seconds := statistics.median(spent[name])), 1),
            "faster": round(first / seconds, 2),
            **_distances(states[name], expected),
        }
        for name in ways
    }


def _distances(found: NDArray[np.float32], expected: NDArray[np.float32]) -> dict[str, float]:
    shares = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return {
        f"distance_{name}": float(f"{np.quantile(shares, share):.2g}")
        for name, share in (("median", 0.5), ("99_%", 0.99), ("largest", 1.0))
    }


def main() -> None:
    """Read the same titles in each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--backbone", default="smollm2")
    parser.add_argument("--titles", type=int, default=200)
    parser.add_argument("--title-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    RESULT.add_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(stderr=True)
    dataset = open_dataset(options.data, ties="file", seed=0, strict=False, console=console)
    tokenizer = load_tokenizer(options.backbone)
    tokens = TitleTokenizer(tokenizer, options.title_tokens).spell(dataset.titles, cast(int, tokenizer.eos_token_id))
    texts = runs_of([tokens[row].tolist() for row in range(len(tokens))], options.titles)
    body, _ = load_text_model(options.backbone)
    ways: dict[str, Read] = {PLAIN: partial(plain, body, texts)}
    for name, dtype in FORMS.items():
        fast, reason = TextForward.of(body, texts, dtype)
        if fast is None:
            raise SystemExit(f"{name}: {reason}")
        ways[name] = partial(fast.read, texts)
    rows = rows_of(ways, options.rounds)
    for name, row in rows.items():
        console.print(name, row)
    RESULT.publish(rows, options.result)


if __name__ == "__main__":
    main()
