"""Generation: our beam search against Hugging Face `generate`, and what a trie costs a step.

Both write titles with the same model from the same prompts: a fixed decoder (`small`: Qwen3, 8 layers, 512 wide, 8,192
tokens) that was trained here, briefly, to write the next title after a history and to end it, since without real end
tokens every text would be as long as allowed. Texts and scores of both are compared first, in fp32; where they differ,
no time is printed. In bf16 rounding can turn one text into another: how many are the same is printed. Rounds alternate,
medians are quoted. The last line is one JSON object.

    python -m benchmarks.generation.beam_search --data DIR [--beams 4] [--rounds 5] [--precision bf16]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.lib.results import ResultFile
from benchmarks.lib.small import END, backbone_config, tokenizer_of
from index.trie import TokenTrie
from modeling.artifact.atomic import replaced_folder
from modeling.generation.beam_search import BeamSearch, BeamSettings, Counts, Text
from modeling.generation.factory import beam_search_for
from modeling.generation.search.run import BeamRun
from modeling.generation.search.trie_tensors import TrieTensors
from modeling.inference.prepacked_linear import prepack
from training.cli_common import open_dataset
from training.data.splits import Split, leave_one_out

HISTORY = 10  # titles in a prompt, as in BIGRec (Bao et al. 2023)
TITLE_TOKENS = 40
LENGTH, BATCH = 256, 8

RESULT = ResultFile(__file__, __doc__)


def trained_small(folder: Path, split: Split, tokens: list[list[int]], steps: int, console: Console) -> Any:
    """`small`, taught to write titles that end; trained once and kept in `folder`."""
    from transformers import Qwen3ForCausalLM

    if (folder / "config.json").exists():
        return Qwen3ForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(backbone_config())
    stream = np.concatenate(
        [[*tokens[row], END] for user in range(split.dataset.n_users) for row in split.train_row(user)]
    )
    rng, optimizer = np.random.default_rng(0), torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        starts = rng.integers(0, len(stream) - LENGTH, size=BATCH)
        ids = torch.from_numpy(np.stack([stream[start : start + LENGTH] for start in starts]).astype(np.int64))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            console.print(f"training small: step {step} of {steps}, loss {float(loss):.2f}")
    with replaced_folder(folder, "backbone") as work:
        model.save_pretrained(str(work))
    return model.eval()


def in_half_precision(model: Any) -> tuple[Any, BeamSearch]:
    """The model in bf16 for Hugging Face, and ours with its maps as the service has them."""
    model = model.to(torch.bfloat16)
    own = copy.deepcopy(model)
    prepack(own.model)
    return model, beam_search_for(own, end_tokens=[END])


def prompts_of(split: Split, tokens: list[list[int]], count: int) -> list[list[int]]:
    """Histories of validation users as prompts, titles closed with the end token as in training; distinct users."""
    users = np.random.default_rng(1).permutation(split.dataset.n_users)[:count]
    return [[token for row in split.train_row(user)[-HISTORY:] for token in (*tokens[row], END)] for user in users]


def hugging_face(
    model: Any, prompts: list[list[int]], search: BeamSettings
) -> tuple[list[tuple[int, ...]], list[float]]:
    """Best text and score of each prompt from `generate`, prompts padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[END] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=mask, num_beams=search.beams, num_return_sequences=1, do_sample=False,
            max_new_tokens=search.max_new_tokens, length_penalty=search.length_penalty, eos_token_id=END,
            pad_token_id=END, early_stopping=False, output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
    texts = []
    for row in out.sequences[:, width:].tolist():
        texts.append(tuple(row[: row.index(END)] if END in row else row))
    return texts, out.sequences_scores.tolist()


def check_same(ours: list[list[Text]], theirs: tuple[list[tuple[int, ...]], list[float]]) -> None:
    """Stop unless both wrote the same: times of different work are no comparison."""
    for our, text, score in zip(ours, *theirs, strict=True):
        if our[0].tokens != text or abs(our[0].score - score) > 1e-3:
            raise SystemExit(f"the two searches differ: {our[0]} and {text}, {score}; no times are printed")


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def against_hugging_face(
    model: Any, generator: BeamSearch, prompts: list[list[int]], search: BeamSettings, batch: int, rounds: int
) -> dict[str, float]:
    """Requests per second of both, in alternating rounds over the same batches."""
    ours, theirs = [], []
    lengths: list[int] = []
    same: list[bool] = []
    for number in range(rounds + 1):
        chosen = [prompts[(number * batch + place) % len(prompts)] for place in range(batch)]
        found, (texts, _) = generator.search(chosen, search), hugging_face(model, chosen, search)
        if number == 0:
            continue
        same += [our[0].tokens == text for our, text in zip(found, texts, strict=True)]
        lengths += [len(texts[0].tokens) for texts in found]
        theirs.append(batch / seconds(partial(hugging_face, model, chosen, search)))
        ours.append(batch / seconds(partial(generator.search, chosen, search)))
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    return {
        "batch": batch,
        "beams": search.beams,
        "ours_per_second": round(statistics.median(ours), 3),
        "hugging_face_per_second": round(statistics.median(theirs), 3),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_lowest": round(min(ratios), 2),
        "ratio_highest": round(max(ratios), 2),
        "same_texts": round(statistics.mean(same), 3),
        "tokens_of_best_text": round(statistics.mean(lengths), 1),
    }


class TimedRun(BeamRun):
    """A search that notes how long choosing continuations takes, apart from the model."""

    chosen_s: float = 0.0

    def _candidates(self, logits_PV: torch.Tensor, *, first: bool) -> Any:
        started = time.perf_counter()
        found = super()._candidates(logits_PV, first=first)
        if not first:
            self.chosen_s += time.perf_counter() - started
        return found


def constraint_cost(
    generator: BeamSearch, trie: TokenTrie, prompts: list[list[int]], beams: int, rounds: int
) -> dict[str, float]:
    """Milliseconds a step, free and along the trie, and what choosing costs in each; milliseconds and steps of a whole
    answer along the trie, written to its end and finished where its rest is determined."""
    trie_arrays = trie.arrays()
    paths = TrieTensors(trie_arrays, generator.device)
    search = BeamSettings(beams=beams, max_new_tokens=12, length_penalty=0.0)
    rows: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        for name, renormalize in (("written", False), ("determined", True)):
            counts, along = Counts(), replace(search, max_new_tokens=1 + TITLE_TOKENS, renormalize=renormalize)
            chosen = [prompts[number]]
            took = seconds(partial(generator.search, chosen, along, paths=trie_arrays, counts=counts))
            rows[f"answer_{name}"].append(1000 * took)
            rows[f"steps_{name}"].append(counts.steps)
        for name, given in (("free", None), ("trie", paths)):
            run, counts = TimedRun(generator, [prompts[number]], search, given), Counts()
            with torch.inference_mode():
                total = seconds(partial(run.all_steps, None, counts))
            rows[name].append(1000 * total / counts.steps)
            rows[f"choosing_{name}"].append(1000 * run.chosen_s / max(1, counts.steps - 1))
    medians = {name: statistics.median(values) for name, values in rows.items()}
    extra = medians["choosing_trie"] - medians["choosing_free"]
    return {
        "beams": beams,
        "titles": len(trie),
        "step_free_ms": round(medians["free"], 3),
        "step_trie_ms": round(medians["trie"], 3),
        "choosing_free_ms": round(medians["choosing_free"], 3),
        "choosing_trie_ms": round(medians["choosing_trie"], 3),
        "constraint_share_of_step": round(extra / medians["trie"], 4),
        "answer_written_ms": round(medians["answer_written"], 1),
        "answer_determined_ms": round(medians["answer_determined"], 1),
        "steps_written": medians["steps_written"],
        "steps_determined": medians["steps_determined"],
    }


def main() -> None:
    """Train or load `small`, then both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=120, help="training steps of small")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of both, once they agree in fp32"
    )
    RESULT.add_option(parser)
    options = parser.parse_args()
    console = Console(stderr=True)
    torch.set_num_threads(options.threads)
    split = leave_one_out(open_dataset(options.data, ties="file", seed=0, strict=False, console=console))
    titles = split.dataset.titles
    backend = tokenizer_of(titles)
    tokens = [encoded.ids[:TITLE_TOKENS] for encoded in backend.encode_batch(list(titles), add_special_tokens=False)]
    folder = Path("artifacts") / ".benchmarks" / f"small-{split.dataset.sha256[:8]}-{options.steps}"
    model = trained_small(folder, split, tokens, options.steps, console)
    generator = beam_search_for(model, end_tokens=[END])
    prompts = prompts_of(split, tokens, 64)
    search = BeamSettings(beams=options.beams, max_new_tokens=options.max_new_tokens)
    check_same(generator.search(prompts[:8], search), hugging_face(model, prompts[:8], search))
    if options.precision == "bf16":
        model, generator = in_half_precision(model)
    result: dict[str, Any] = {"threads": options.threads, "precision": options.precision}
    result["prompt_tokens"] = round(statistics.mean(map(len, prompts)), 1)
    result["against_hugging_face"] = []
    for batch in (1, 8):
        row = against_hugging_face(model, generator, prompts, search, batch, options.rounds)
        console.print(row)
        result["against_hugging_face"].append(row)
    trie = TokenTrie.build(tokens, END)
    result["constraint"] = []
    for beams in (10, 50):
        row = constraint_cost(generator, trie, prompts, beams, max(3, options.rounds))
        console.print(row)
        result["constraint"].append(row)
    RESULT.publish(result, options.result, [*result["against_hugging_face"], *result["constraint"]])


if __name__ == "__main__":
    main()
