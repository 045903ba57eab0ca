"""The check of a data folder: what is used, what is lost, and what a reader of the figures has to know."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.data.checking import times, titles
from training.data.checking.targets import repeated_last
from training.data.checking.titles import UnknownTokens
from training.data.dataset import Dataset, Ties, read_dataset, tied_with_the_one_before
from training.data.report import KINDS, DataReport, Finding, Tolerances
from training.data.splits import MIN_LENGTH

_SHOWN = 3


@dataclass(frozen=True)
class Check:
    """Findings about a folder; `refused` are the findings over their limit, for which commands would refuse it."""

    dataset: Dataset
    findings: tuple[Finding, ...]
    facts: dict[str, Any]
    warnings: tuple[str, ...]
    unknown: UnknownTokens | None

    @property
    def refused(self) -> tuple[Finding, ...]:
        """Findings over their limit."""
        return tuple(finding for finding in self.findings if finding.refused)

    def lines(self) -> list[str]:
        """The check as text."""
        facts = [f"{name.replace('_', ' '):<28} {value}" for name, value in self.facts.items()]
        notes = [f"note: {note}" for note in self.dataset.report.notes]
        return [*facts, *map(str, self.findings), *notes, *(f"warning: {text}" for text in self.warnings)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        report = DataReport(self.findings, self.dataset.report.notes).to_dict()
        refused = [finding.kind for finding in self.refused]
        return {**self.facts, "report": report, "warnings": [*self.warnings], "refused": refused}


def check_folder(
    folder: Path, *, tolerances: Tolerances, ties: Ties = "file", seed: int = 0, backbone: str | None = None
) -> Check:
    """Read a folder as commands do, but to the end, whatever is odd.

    Args:
        folder: a data set in the folder format.
        tolerances: what commands would tolerate; more is in `Check.refused`.
        ties: as in `read_dataset`.
        seed: of the shuffle of ties.
        backbone: its tokenizer is asked how much of the titles it knows; None: none is.

    Raises:
        DataError: the folder holds no data set, or nothing usable.
        BackboneError: the backbone is not known or not there.
    """
    dataset = read_dataset(folder, tolerance=Tolerances(1.0, dict.fromkeys(KINDS, 1.0)), ties=ties, seed=seed)
    findings = tuple(
        replace(each, limit=tolerances.of(each.kind)) if each.limit is not None and each.kind in KINDS else each
        for each in dataset.report.findings
    )
    unknown = unknown_tokens_of(dataset, backbone) if backbone else None
    return Check(dataset, findings, _facts(dataset, unknown), tuple(_warnings(dataset, unknown)), unknown)


def unknown_tokens_of(dataset: Dataset, backbone: str) -> UnknownTokens:
    """Tokens of the titles that a backbone's tokenizer does not know; raises BackboneError."""
    from modeling.backbone.loading import load_tokenizer

    tokenizer = load_tokenizer(backbone)
    known = lambda texts: tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]  # noqa: E731
    return titles.unknown_tokens(dataset.titles, backbone, known, tokenizer.unk_token_id)


def _facts(dataset: Dataset, unknown: UnknownTokens | None) -> dict[str, Any]:
    asked = dataset.lengths_U >= MIN_LENGTH
    last = dataset.offsets_U1[1:][asked] - 1
    moments = times.span(dataset)
    facts: dict[str, Any] = {
        "users": dataset.n_users,
        "users_with_targets": int(asked.sum()),
        "items": dataset.n_items,
        "items_never_taken": dataset.n_items - len(np.unique(dataset.rows)),
        "interactions": dataset.n_interactions,
        "median_length": float(np.median(dataset.lengths_U)),
        "test_targets_repeated": int(repeated_last(dataset)[asked].sum()),
        "test_targets_tied": int(tied_with_the_one_before(dataset)[last].sum()),
        "first_time": moments[0] if moments else "",
        "last_time": moments[1] if moments else "",
        "titles_with_wide_characters": round(titles.share_wide(dataset.titles), 3),
        "titles_near_equal": len(titles.near_equal(dataset.item_ids, dataset.titles)),
        "columns_of_items": dataset.items.columns,
    }
    if unknown:
        facts |= {
            "backbone": unknown.backbone,
            "unknown_tokens": round(unknown.share, 4),
            "titles_lost": unknown.titles_lost,
        }
    return facts


def _warnings(dataset: Dataset, unknown: UnknownTokens | None) -> list[str]:
    asked = dataset.lengths_U >= MIN_LENGTH
    found = times.oddities(dataset)
    if not asked.any():
        return [*found, f"no user has {MIN_LENGTH} interactions, so that nothing can be trained or measured"]
    found += _target_warnings(dataset, asked)
    if "title_missing" in dataset.items.columns and (share := float(dataset.items["title_missing"].mean())) > 0.5:  # type: ignore[arg-type]
        found.append(f"{100 * share:.0f} % of the items have no title: train on ids (sasrec)")
    pairs = titles.near_equal(dataset.item_ids, dataset.titles)
    named = [pair for pair in pairs if not _is_unnamed(dataset, pair[0])]
    if named:
        shown = "; ".join(f"{a} {s!r} and {b} {t!r}" for a, s, b, t in named[:_SHOWN])
        found.append(
            f"{len(named):,} items have nearly the title of another (width, case and punctuation apart): {shown}"
        )
    if unknown and unknown.share > titles.WARN_UNKNOWN:
        found.append(
            f"{unknown.backbone} does not know {100 * unknown.share:.0f} % of the tokens of the titles ([UNK]), and of "
            f"{unknown.titles_lost:,} of {unknown.titles:,} titles nothing: take --backbone tiny (a tokenizer of these "
            "titles) or a multilingual encoder"
        )
    elif unknown is None and titles.share_wide(dataset.titles) > 0.2:
        found.append(
            "many titles are Chinese, Japanese or Korean, which minilm does not read: take --backbone tiny or a "
            "multilingual encoder (data check --backbone NAME counts what one does not know)"
        )
    return found


def _target_warnings(dataset: Dataset, asked: Any) -> list[str]:
    found, count = [], int(asked.sum())
    repeated = int(repeated_last(dataset)[asked].sum())
    if repeated:
        found.append(
            f"{repeated:,} of {count:,} test targets ({100 * repeated / count:.0f} %) are items that the user had "
            "before; seen items are not ranked, so these count as missed (import with --repeats last to "
            "have none)"
        )
    tied = int(tied_with_the_one_before(dataset)[dataset.offsets_U1[1:][asked] - 1].sum())
    if tied:
        found.append(
            f"{tied:,} of {count:,} test targets ({100 * tied / count:.0f} %) have the time of the item before "
            "(baskets, days): their order is that of the file; --ties shuffle where it says something about ids"
        )
    return found


def _is_unnamed(dataset: Dataset, item_id: str) -> bool:
    return "title_missing" in dataset.items.columns and bool(dataset.items["title_missing"][dataset.row_of[item_id]])
