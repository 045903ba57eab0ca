"""Quality of rankers around a language model on validation users: untrained, and after a few examples.

`tallrec`: area under the curve of yes and no by number of shots. `llamarec`: NDCG@10 of both stages against the dense
stage alone, paired; and how alike two orders of the same candidates are scored (Spearman), the bias of letters. The
lower layers are frozen and their states kept, which makes a training of minutes possible on one core. Every line of
output is one JSON object, the last one holds all rows. A row is stored in ``--state`` when it ends, so that the same
command goes on after the last whole row of an earlier one; take another folder when the code has changed.

    python -m benchmarks.quality.rankers tallrec --data DIR --shots 0 16 64 256 --seeds 0 1 2 --state DIR
    python -m benchmarks.quality.rankers llamarec --data DIR --id-model DIR --shots 0 96 [--negatives retrieved]

Settings of the recipe are changed by ``--set history.instruction=…``. With ``--test-data`` a `tallrec` is also asked
about users of a second data set, whose titles it has not been trained on (``elsewhere`` of a row):

    python -m benchmarks.quality.rankers tallrec --data FILMS --test-data BEAUTY --test-answers choices --shots 0 64
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from scipy.stats import spearmanr

from benchmarks.lib.results import ResultFile
from modeling.artifact.manifest import read_manifest
from modeling.generation.api import ListQuery
from modeling.generation.base import ItemIdentifiers
from modeling.generation.item_tokenizer import TitleTokenizer
from modeling.methods.llamarec import LlamarecRanker
from modeling.methods.tallrec import TallrecRanker
from training.data.dataset import read_dataset
from training.data.splits import Split, leave_one_out
from training.loop.fit import FitOptions, sample_targets
from training.methods.base_generative import FittedGenerator, fit_generative
from training.methods.tallrec import Opinions, TallrecSettings, yes_no_figures, yes_or_no
from training.recipe import Recipe
from training.recipes import get_recipe

SMALL = {
    "tallrec": ["history.limit=6", "history.title_tokens=8", "optimizer.positions=8"],
    "llamarec": ["history.limit=5", "history.title_tokens=10", "optimizer.positions=8", "method.candidates=10",
                 "method.window=10"],
}  # fmt: skip

RESULT = ResultFile(__file__, __doc__)
DECIDES = ("examples", "permuted")
"""Options that decide a row's figures and are not in its recipe."""


def recipe_of(given: argparse.Namespace, shots: int) -> Recipe:
    """The recipe with small prompts; layers below the last ``--layers`` are frozen where anything is trained."""
    settings = [*SMALL[given.method], f"method.validation_users={given.users}"]
    if shots:
        settings += [f"method.sequences={shots}", f"adapter.layers={given.layers}", "method.kept_states=fp16",
                     f"optimizer.backbone_rate={given.rate}", "adapter.dropout=0.0"]  # fmt: skip
    else:
        settings.append("optimizer.epochs=0")
    if given.method == "llamarec":
        settings += [f"requires={read_manifest(given.id_model).recipe}", f"method.negatives={given.negatives}"]
    return get_recipe(given.method, [*settings, *given.settings], backbone=given.backbone)


def fitted(recipe: Recipe, split: Split, given: argparse.Namespace, shots: int, work: Path) -> FittedGenerator:
    """One model, trained for a fixed number of epochs: none is selected, so that no validation user is seen twice."""
    epochs = max(1, round(given.examples / shots)) if shots else None
    options = FitOptions(work / f"{shots}-{given.seed}", seed=given.seed, epochs=epochs, cache=work)
    return fit_generative(
        recipe, split, options, folder=None, collaborative=given.id_model, console=Console(stderr=True)
    )


def agreement(ranker: LlamarecRanker, split: Split, users: int, seed: int) -> dict[str, float]:
    """Mean rank correlation of the scores of the same candidates in the dense order and in a random one, and how often
    the first label of the dense order has the best score (one in ``candidates`` by chance)."""
    rng, alike, first = np.random.default_rng(seed), [], []
    targets = sample_targets(split.validation, users, seed + 1)
    for history in targets.histories():
        rows = history.astype(np.int64).tolist()
        wanted = ListQuery(ranker.candidates, np.array(rows, np.int64))
        candidates = ranker.retrieve(rows, wanted).tolist()
        prompt = ranker.prepare_candidates(rows, candidates)
        straight_C = ranker.score_in_order(prompt, np.arange(len(candidates)))
        mixed_C = ranker.score_in_order(prompt, rng.permutation(len(candidates)))
        alike.append(float(spearmanr(straight_C, mixed_C).statistic))
        first.append(int(straight_C.argmax()) == 0)
    return {"spearman": float(np.mean(alike)), "first_label_best": float(np.mean(first)), "permuted": len(alike)}


def moved(ranker: TallrecRanker, split: Split) -> TallrecRanker:
    """The same model and prompt over the titles of another catalog."""
    spelling = cast(TitleTokenizer, ranker.names.spelling)
    popular_N = np.argsort(-split.popularity(), kind="stable")
    names = ItemIdentifiers(spelling.spell(split.dataset.titles, ranker.end), popular_N, spelling)
    return TallrecRanker(
        ranker.model, names, prompt=ranker.prompt, end=ranker.end, retriever=None, candidates=ranker.candidates,
        titles=ranker.titles,
    )  # fmt: skip


def opinions_of(recipe: Recipe, split: Split, given: argparse.Namespace) -> Opinions:
    """Right answers for a data set that the model is not trained on; raises `RecipeError` if it has no ratings."""
    settings = cast(TallrecSettings, recipe.method)
    return Opinions(split, settings.model_copy(update={"answers": given.test_answers or settings.answers}))


def elsewhere(ranker: TallrecRanker, opinions: Opinions, split: Split, given: argparse.Namespace) -> dict[str, Any]:
    """Figures for validation users of a data set that the model was not trained on."""
    targets = sample_targets(split.validation, given.users, given.seed)
    said = yes_or_no(moved(ranker, split), targets, opinions, seed=given.seed)
    return {
        "data": split.dataset.name, "answers": opinions.settings.answers, **yes_no_figures(said, seed=given.seed),
    }  # fmt: skip


def row_of(
    given: argparse.Namespace, split: Split, shots: int, work: Path, other: Split | None = None
) -> dict[str, Any]:
    """One row, from its file where one of the same data and settings has ended before; ``other``: second data set."""
    recipe = recipe_of(given, shots)
    file = None if given.state is None else given.state / f"{_row_name(given, split, recipe, shots, other)}.json"
    if file is not None and file.exists():
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return known
    opinions = None if other is None else opinions_of(recipe, other, given)  # refused before anything is trained
    started = time.process_time()
    found = fitted(recipe, split, given, shots, work)
    figures = found.report["yes_no" if given.method == "tallrec" else "two_stages"]
    row: dict[str, Any] = {"method": given.method, "shots": shots, "seed": given.seed, **figures}
    if given.method == "llamarec" and given.permuted:
        row |= agreement(found.writer, split, given.permuted, given.seed)
    if other is not None and opinions is not None:
        row["elsewhere"] = elsewhere(found.writer, opinions, other, given)
    row |= {"cpu": round(time.process_time() - started)}
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        writing = file.with_suffix(".writing")
        writing.write_text(json.dumps(row), encoding="utf-8")
        writing.replace(file)
    return row


def _row_name(given: argparse.Namespace, split: Split, recipe: Recipe, shots: int, other: Split | None) -> str:
    """Of a row's file: method, shots, seed, and a hash of everything else that decides its figures."""
    decides = {name: getattr(given, name) for name in DECIDES}
    decides |= {"data": split.dataset.sha256, "ties": split.dataset.ties, "recipe": recipe.model_dump(mode="json")}
    decides |= {"id_model": None if given.id_model is None else read_manifest(given.id_model).version}
    if other is not None:
        decides |= {"test_data": other.dataset.sha256, "test_answers": given.test_answers}
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    return f"{given.method}-{shots}-{given.seed}-{digest}"


def main(words: Sequence[str] | None = None) -> None:
    """Train and measure one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=sorted(SMALL))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--id-model", type=Path)
    parser.add_argument("--backbone", default="smollm2")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 16, 64])
    parser.add_argument("--users", type=int, default=150)
    parser.add_argument("--examples", type=int, default=256, help="examples that are read in a training")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--negatives", choices=("random", "retrieved"), default="random")
    parser.add_argument("--permuted", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each draws its own shots and users")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="SLOT.FIELD=VALUE")
    parser.add_argument("--test-data", type=Path, help="second data set, whose users a tallrec is also asked about")
    parser.add_argument(
        "--test-answers", choices=("ratings", "choices"),
        help="method.answers for --test-data; left out: that of the recipe. Data without ratings needs choices",
    )  # fmt: skip
    parser.add_argument("--state", type=Path, help="folder of the rows that have ended; left out: none is kept")
    RESULT.add_option(parser)
    given = parser.parse_args(words)
    if (given.method == "llamarec") != (given.id_model is not None):
        parser.error("llamarec needs --id-model, and tallrec here takes none")
    if given.test_data is not None and given.method != "tallrec":
        parser.error("--test-data is for tallrec: candidates of a llamarec come from its own catalog")
    if given.test_answers is not None and given.test_data is None:
        parser.error("--test-answers is for --test-data, which is not given")
    split = leave_one_out(read_dataset(given.data))
    other = None if given.test_data is None else leave_one_out(read_dataset(given.test_data))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for shots in given.shots:
            for seed in given.seeds:
                given.seed = seed
                rows.append(row_of(given, split, shots, Path(folder), other))
                print(json.dumps(rows[-1]), flush=True)
    RESULT.publish({"rows": rows}, given.result, rows)


if __name__ == "__main__":
    main()
