"""Training throughput: our loop against the plain Hugging Face Trainer loop, on the same model, data and precision.

The plain loop is what one writes first: one example per prefix of a user's sequence (its last item the target), random
batches, dynamic padding to the longest example, an attention mask. Ours reads each sequence once with a target at
every item boundary, batches near-equal lengths and needs no mask. Rounds alternate; medians are quoted.

Two figures, because the loops differ in what they count: real tokens (positions that are not padding) per second, and
targets learned from per second. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.lib.results import ResultFile
from modeling.encoder.build import Model, TextVectors, build_model
from modeling.encoder.item_tower import Whitening
from training.cli_common import open_dataset
from training.data.splits import Split, leave_one_out
from training.loop.examples import EpochWindows, TrainingBatch, Window, collate
from training.loop.module import RetrievalModule
from training.loop.trainer import RecommenderTrainer
from training.methods.dense import DenseSettings
from training.recipes import Recipe, get_recipe

PLAIN_BATCH = 32

RESULT = ResultFile(__file__, __doc__)


class Clock(TrainerCallback):
    """Counts real positions, padded positions and targets, and the seconds after two warm-up steps."""

    def __init__(self, warm: int = 2) -> None:
        self.warm = warm
        self.steps = 0
        self.seen: list[TrainingBatch] = []
        self.started = 0.0
        self.seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start after the warm-up, then note the time of the newest step."""
        self.steps += 1
        if self.steps == self.warm:
            self.started = time.perf_counter()
            self.seen.clear()
        self.seconds = time.perf_counter() - self.started

    def figures(self) -> dict[str, float]:
        """Per second, and the share of padding."""
        real = sum(batch.prompts.tokens for batch in self.seen)
        padded = sum(np.prod(batch.prompts.shape) for batch in self.seen)
        targets = sum(len(batch.targets_P) for batch in self.seen)
        return {
            "tokens_per_second": real / self.seconds,
            "targets_per_second": targets / self.seconds,
            "padding": 1 - real / float(padded),
        }


class PlainTrainer(Trainer):
    """The Trainer as it comes: its own sampler and loss call; only the collator is given."""

    clock: Clock

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss over the batch."""
        self.clock.seen.append(inputs["batch"])
        return model(inputs["batch"]) / len(inputs["batch"].targets_P)


class OurTrainer(RecommenderTrainer):
    """Ours, with the batches it reads noted."""

    clock: Clock

    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        """As trained."""
        self.clock.seen.append(inputs["batch"])
        return super().compute_loss(model, inputs, *rest, **options)


def prefix_examples(split: Split, limit: int) -> list[Window]:
    """One example per prefix: at most ``limit`` inputs and the one target after them."""
    examples = []
    for user in range(split.dataset.n_users):
        rows = split.train_row(user).astype(np.int64)
        examples += [Window(rows[max(0, end - limit) : end + 1]) for end in range(1, len(rows))]
    return examples


def last_target_only(model: Model, windows: list[Window]) -> dict[str, Any]:
    """Dynamic padding with an attention mask; the loss is at the last boundary of each example."""
    batch = collate(model.encoder, windows)
    last = np.flatnonzero(np.diff(batch.users_P.numpy(), append=len(windows)))
    mask = (batch.prompts.kinds_BT > 0).long()
    prompts = type(batch.prompts)(**{**vars(batch.prompts), "mask_BT": mask, "positions_BT": None})
    prompts = type(prompts)(
        **{**vars(prompts), "positions_BT": torch.arange(mask.shape[1]).expand(mask.shape).contiguous()}
    )
    return {
        "batch": TrainingBatch(
            prompts,
            users_P=batch.users_P[last],
            boundaries_P=batch.boundaries_P[last],
            recent_PR=batch.recent_PR[last],
            targets_P=batch.targets_P[last],
            owners_P=batch.owners_P[last],
            places_P=batch.places_P[last],
        )
    }


def fresh(recipe: Recipe, split: Split) -> tuple[Model, RetrievalModule]:
    """The recipe's model with random title vectors: reading the titles is not what is measured."""
    torch.manual_seed(0)
    raw = np.random.default_rng(0).normal(size=(split.dataset.n_items, 384)).astype(np.float32)
    whitening = Whitening.fit(raw, recipe.items.text_dim)
    model = build_model(
        recipe.model_spec(),
        catalog_size=split.dataset.n_items,
        titles=split.dataset.titles,
        text=TextVectors(whitening(raw), whitening) if recipe.needs_text_vectors else None,
    )
    return model, RetrievalModule(
        model.encoder, cast(DenseSettings, recipe.method).objective, popularity_N=split.popularity()
    )


def arguments(steps: int, batch: int, precision: str, work: Path) -> TrainingArguments:
    """The same for both loops."""
    return TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=1e-3,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        bf16=precision == "bf16",
        remove_unused_columns=False,
    )


def measure_plain(recipe: Recipe, split: Split, steps: int, precision: str, work: Path) -> dict[str, float]:
    """One round of the plain loop."""
    model, module = fresh(recipe, split)
    clock = Clock()
    trainer = PlainTrainer(
        model=module,
        args=arguments(steps, PLAIN_BATCH, precision, work),
        train_dataset=prefix_examples(split, recipe.history.limit),
        data_collator=lambda windows: last_target_only(model, windows),
        callbacks=[clock],
    )
    trainer.clock = clock
    trainer.train()
    return clock.figures()


def measure_ours(recipe: Recipe, split: Split, steps: int, precision: str, work: Path) -> dict[str, float]:
    """One round of our loop."""
    _, module = fresh(recipe, split)
    clock = Clock()
    trainer = OurTrainer(
        module,
        arguments(steps, 1, precision, work),
        windows=EpochWindows(split.train_rows(), limit=recipe.history.limit, seed=0),
        optimizer=recipe.optimizer,
        evaluate_now=dict,
        callbacks=[clock],
    )
    trainer.clock = clock
    trainer.train()
    return clock.figures()


def main() -> None:
    """Alternate the loops and print the ratio of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--forms", default="titles,compressed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="steps of the plain loop a round; ours takes a third")
    parser.add_argument("--positions", type=int, default=1280, help="targets in a batch of ours")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--work", type=Path, default=Path("artifacts/.bench-training"))
    RESULT.add_option(parser)
    options = parser.parse_args()
    console = Console(stderr=True)
    split = leave_one_out(open_dataset(options.data, ties="file", seed=0, strict=False, console=console))
    results: dict[str, Any] = {"data": split.dataset.name, "backbone": options.backbone, "torch": torch.__version__}
    results |= {"threads": torch.get_num_threads(), "precision": options.precision, "rounds": options.rounds}
    for form in options.forms.split(","):
        recipe = get_recipe(
            "anyo",
            [f"history.form={form}", "history.limit=30", f"optimizer.positions={options.positions}"],
            backbone=options.backbone,
        )
        rounds: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
        for _ in range(options.rounds):
            rounds["plain"].append(measure_plain(recipe, split, options.steps, options.precision, options.work))
            ours = max(4, options.steps // 3)
            rounds["ours"].append(measure_ours(recipe, split, ours, options.precision, options.work))
        medians = {
            loop: {name: statistics.median(one[name] for one in found) for name in found[0]}
            for loop, found in rounds.items()
        }
        ratios = {
            name: round(medians["ours"][name] / medians["plain"][name], 2)
            for name in ("tokens_per_second", "targets_per_second")
        }
        results[form] = {"ratio": ratios, **{k: {n: round(x, 3) for n, x in v.items()} for k, v in medians.items()}}
        console.print(f"{form}: {results[form]}")
    rows = [{"data": results["data"], "history": form, **results[form]} for form in options.forms.split(",")]
    RESULT.publish(results, options.result, rows)


if __name__ == "__main__":
    main()
