"""Hallucination of generative artifacts: texts that are no item, repeated items, and tolerance of the grounding.

    python -m benchmarks.generation.hallucination ARTIFACT… --data DIR [--users 500]

For each artifact, over histories of validation users: the share of texts that are no title of the catalog (the best
one, and all beams), the share of texts that name an item that a better beam has named already, the share of answers
that had to be filled up, and Recall@10 of targets that no training sequence holds, which a title can still name. For
artifacts that ground free titles also the share of catalog titles that are grounded to their own item after a change of
case, punctuation, a leading article, a year or one typo. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import random
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks.lib.results import ResultFile
from index import Catalog
from modeling.artifact.manifest import read_manifest
from modeling.generation.api import Hypothesis, ListQuery
from modeling.generation.base import ItemGenerator
from modeling.methods import Loaded
from modeling.methods.base_generative import load_generative
from modeling.methods.bigrec import BigRecGenerator
from training.cli_common import open_dataset
from training.data.splits import Split, leave_one_out
from training.provenance import require_same_questions

BATCH, K = 8, 10
TITLES = 500
Change = Callable[[str, random.Random], str]

RESULT = ResultFile(__file__, __doc__)


def typo(title: str, rng: random.Random) -> str:
    """One letter is another one, or two neighbours change places."""
    places = [place for place, letter in enumerate(title) if letter.isalpha()]
    if not places:
        return title
    place = rng.choice(places)
    if rng.random() < 0.5 and place + 1 < len(title):
        return title[:place] + title[place + 1] + title[place] + title[place + 2 :]
    return title[:place] + rng.choice(string.ascii_lowercase) + title[place + 1 :]


def without_article(title: str, rng: random.Random) -> str:
    """A leading article goes, or comes."""
    bare = re.sub(r"^(the|a|an) ", "", title, flags=re.IGNORECASE)
    return bare if bare != title else f"The {title}"


def without_year(title: str, rng: random.Random) -> str:
    """A year goes, or comes."""
    bare = re.sub(r"\s*\(?\b(19|20)\d\d\b\)?", "", title).strip()
    return bare if bare and bare != title else f"{title} (2014)"


def without_punctuation(title: str, rng: random.Random) -> str:
    """Commas, dots, dashes and brackets become spaces."""
    return " ".join(re.sub(r"[^\w\s]", " ", title).split()) or title


CHANGES: dict[str, Change] = {
    "none": lambda title, rng: title,
    "case": lambda title, rng: title.lower() if title != title.lower() else title.upper(),
    "punctuation": without_punctuation,
    "article": without_article,
    "year": without_year,
    "typo": typo,
}


def robustness(model: BigRecGenerator, seed: int) -> dict[str, dict[str, float]]:
    """Share of titles that are grounded to an item of that very title, by what was changed."""
    rng, size = random.Random(seed), len(model.names.tokens)
    rows = rng.sample(range(size), min(TITLES, size))
    found: dict[str, dict[str, float]] = {}
    for name, change in CHANGES.items():
        right = changed = 0
        for row in rows:
            title = model.text_of(row)
            text = change(title, rng)
            changed += text != title
            right += model.text_of(model.nearest(text)) == title
        found[name] = {"right": round(right / len(rows), 4), "titles_changed": round(changed / len(rows), 4)}
    return found


def duplicates(texts: tuple[Hypothesis, ...]) -> int:
    """Texts whose item a better one has named."""
    named = [text.row for text in texts if text.row is not None]
    return len(named) - len(set(named))


def study(artifact: Loaded[ItemGenerator], split: Split, users: int, console: Console) -> dict[str, Any]:
    """All figures of one artifact."""
    targets, model = split.validation, artifact.model
    unseen_N = split.popularity() == 0
    cold = np.flatnonzero(unseen_N[targets.rows_T])
    rng = np.random.default_rng(0)
    asked = np.sort(rng.choice(len(targets), min(users, len(targets)), replace=False))
    histories = list(targets.histories())
    counts = dict.fromkeys(("texts", "best_wrong", "wrong", "twice", "filled"), 0)
    hits = 0
    with Progress(console=console, transient=True) as bar:
        both = [*asked.tolist(), *cold[:users].tolist()]
        task = bar.add_task(artifact.manifest.name, total=len(both))
        for start in range(0, len(both), BATCH):
            part = both[start : start + BATCH]
            rows = [histories[number].astype(np.int64) for number in part]
            written = model.write(
                [model.prepare(each.tolist()) for each in rows], [ListQuery(K, each) for each in rows]
            )
            for place, (number, answer) in enumerate(zip(part, written, strict=True), start):
                if place >= len(asked):
                    hits += int(targets.rows_T[number]) in answer.rows_K.tolist()
                    continue
                counts["texts"] += len(answer.generated)
                counts["best_wrong"] += not answer.generated[0].valid
                counts["wrong"] += sum(not text.valid for text in answer.generated)
                counts["twice"] += duplicates(answer.generated)
                counts["filled"] += answer.filled > 0
            bar.advance(task, len(part))
    result: dict[str, Any] = {
        "recipe": artifact.manifest.recipe,
        "users": len(asked),
        "best_text_no_item": round(counts["best_wrong"] / len(asked), 4),
        "texts_no_item": round(counts["wrong"] / counts["texts"], 4),
        "texts_of_an_item_already_named": round(counts["twice"] / counts["texts"], 4),
        "answers_filled_up": round(counts["filled"] / len(asked), 4),
        "items_never_trained_on": int(unseen_N.sum()),
        "questions_for_them": min(users, len(cold)),
        "recall@10_of_them": round(hits / min(users, len(cold)), 4) if len(cold) else None,
    }
    if isinstance(model, BigRecGenerator):
        result["grounded_to_the_right_item"] = robustness(model, 0)
    return result


def main() -> None:
    """Study all artifacts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--users", type=int, default=500)
    RESULT.add_option(parser)
    options = parser.parse_args()
    console = Console(stderr=True)
    split = leave_one_out(open_dataset(options.data, ties="file", seed=0, strict=False, console=console))
    results = {}
    for folder in options.artifacts:
        catalog = Catalog.read(folder / "catalog.parquet")
        require_same_questions(folder, read_manifest(folder), catalog, split.dataset, "validation")
        popular = catalog.popular()
        results[folder.name] = study(load_generative(folder, popular), split, options.users, console)
        console.print(folder.name, results[folder.name])
    RESULT.publish(results, options.result)


if __name__ == "__main__":
    main()
