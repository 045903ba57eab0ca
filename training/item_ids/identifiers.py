"""Item identifiers of P5: random, sequential, collaborative or semantic identifiers, as codes.

An identifier is a row of codes [L], which `modeling.generation.item_tokenizer.CodeTokenizer` turns into tokens; -1
stands for no code, after the last one of an identifier that is shorter than others.

**No leak.** Numbering items in the order in which whole sequences show them, as P5 did, gives the last items of a user
numbers that follow each other, so that the test item can be guessed from its number. Everything here is made from
the training part of a split, and takes nothing but that part (`Split.train_rows`).

Shape legend: N items, L codes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.item_ids.clusters import choices, cluster_tree
from training.recipe import CodesSpec

Rows = NDArray[np.int64]
Codes = NDArray[np.int64]


def identifiers(
    kind: str, sequences: Sequence[Rows], categories: Sequence[Sequence[str]], spec: CodesSpec, *, seed: int
) -> tuple[Codes, dict[str, Any]]:
    """Codes [N, L] of one kind, no two items alike, and figures about them.

    Args:
        kind: ``random``, ``sequential``, ``collaborative``, or ``categories`` (of the semantic ones, those that need no
            vectors).
        sequences: item rows of the training part, user by user.
        categories: of every item, one row each.
        spec: sizes.
        seed: of what is random.
    """
    items = len(categories)
    if kind == "random":
        codes_NL = numbered(np.random.default_rng([seed, 6]).permutation(items), spec.size)
    elif kind == "sequential":
        codes_NL = numbered(first_seen(sequences, items), spec.size)
    elif kind == "collaborative":
        codes_NL = _collaborative(sequences, items, spec, seed)
    else:
        codes_NL = _by_category(first_seen(sequences, items), categories, spec)
    return codes_NL, {"kind": kind, "levels": codes_NL.shape[1], "mean_length": float((codes_NL >= 0).sum(1).mean())}


def numbered(rank_N: Rows, size: int) -> Codes:
    """Numbers as codes of ``size`` each, the leading one first, all of the same length [N, L]."""
    digits = 1
    while size**digits < len(rank_N):
        digits += 1
    return rank_N[:, None] // size ** np.arange(digits - 1, -1, -1) % size


def first_seen(sequences: Sequence[Rows], items: int) -> Rows:
    """Place [N] of every item in the order of its first appearance, user by user; those that never appear follow."""
    shown = np.concatenate([*sequences, np.arange(items)])
    rows, first = np.unique(shown, return_index=True)
    rank_N = np.empty(items, np.int64)
    rank_N[rows[np.argsort(first)]] = np.arange(items)
    return rank_N


def _collaborative(sequences: Sequence[Rows], items: int, spec: CodesSpec, seed: int) -> Codes:
    """The way to an item's leaf, then its number there, in the order of first appearance."""
    rank_N = first_seen(sequences, items)
    leaves = cluster_tree(
        choices(sequences, items), clusters=spec.clusters, leaf=spec.size, levels=spec.levels, seed=seed
    )
    found: dict[int, list[int]] = {}
    for leaf in leaves:
        rows_M = leaf.rows_M[np.argsort(rank_N[leaf.rows_M])]
        for row, number in zip(rows_M.tolist(), numbered(np.arange(len(rows_M)), spec.size).tolist(), strict=True):
            found[row] = [*leaf.path, *number]
    codes_NL = np.full((items, max(map(len, found.values()))), -1, np.int64)
    for row, codes in found.items():
        codes_NL[row, : len(codes)] = codes
    return codes_NL


def _by_category(rank_N: Rows, categories: Sequence[Sequence[str]], spec: CodesSpec) -> Codes:
    """An item's most common categories, the commonest first and 0 for none, then its number among those alike."""
    counts = Counter(name for names in categories for name in set(names))
    order = sorted(counts, key=lambda name: (-counts[name], name))
    number_of = {name: number for number, name in enumerate(order[: spec.size - 1], start=1)}
    paths: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row in np.argsort(rank_N).tolist():
        known = sorted({number_of[name] for name in categories[row] if name in number_of})[: spec.levels]
        paths[(*known, *[0] * (spec.levels - len(known)))].append(row)
    path_N = np.empty((len(categories), spec.levels), np.int64)
    place_N = np.empty(len(categories), np.int64)
    for path, rows in paths.items():
        path_N[rows], place_N[rows] = path, np.arange(len(rows))
    most = max(map(len, paths.values()))
    return np.concatenate([path_N, numbered(np.arange(most), spec.size)[place_N]], 1)
