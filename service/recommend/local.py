"""Recommendations in the calling thread: an artifact without HTTP, store, caches or event loop.

The artifact is loaded as the service loads it, and prompt, model and index are those that answer its requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index import Catalog
from index.filters.body import read_filter
from index.filters.checking import check_filter
from index.filters.language import AttributeValue, Filter, every, in_categories
from index.live_catalog import LiveCatalog
from modeling.encoder.prompt import FreeItem
from modeling.encoder.user_encoder import read_history
from modeling.generation.api import ListQuery
from modeling.inference.precision_choice import PrecisionAsked
from modeling.text import plain_text
from service.artifacts.loading import AnyLoaded, open_artifact
from service.recommend.item_fields import item_fields

Item = str | Mapping[str, str]
"""An item of a history: an id of the catalog, or ``{"title": …}`` for free text."""


@dataclass(frozen=True, slots=True)
class RecommendedItem:
    """An item of an answer. ``score`` orders one answer; it is the inner product of a dense artifact.

    ``categories`` and ``attributes`` are those that ``fields`` asked for; None where it did not.
    """

    item_id: str
    title: str
    score: float
    categories: tuple[str, ...] | None = None
    attributes: Mapping[str, AttributeValue] | None = None


class LocalRecommender:
    """Answers histories with one artifact, one call at a time."""

    def __init__(self, loaded: AnyLoaded) -> None:
        """Use `load`."""
        self._loaded = loaded
        self._with_fields = LiveCatalog(loaded.catalog)

    @property
    def name(self) -> str:
        """The artifact's name."""
        return self._loaded.name

    @property
    def recipe(self) -> str:
        """The recipe that it was trained with."""
        return self._loaded.recipe

    @property
    def reads(self) -> tuple[str, ...]:
        """Kinds of history items that it reads: `ids`, `text`."""
        return self._loaded.reads

    @property
    def catalog(self) -> Catalog:
        """All items, with titles, categories and popularity."""
        return self._loaded.catalog

    def recommend(
        self,
        history: Sequence[Item],
        k: int = 10,
        *,
        exclude: Sequence[str] = (),
        exclude_seen: bool = True,
        categories: Sequence[str] = (),
        filter: Mapping[str, Any] | None = None,
        fields: Sequence[str] = (),
        user_id: str | None = None,
    ) -> list[RecommendedItem]:
        """The k best items for a history, best first; fewer where fewer are eligible.

        Args:
            history: what the user took, oldest first. Ids that are not in the catalog are passed over.
            k: how many items.
            exclude: ids that are not recommended.
            exclude_seen: leave out the items of ``history``, given by their ids or by their titles.
            categories: recommend items of at least one of these only.
            filter: recommend items that pass it only, as the ``filter`` of ``POST /recommend``.
            fields: ``categories`` and names of attributes that the items of the answer have beside the title.
            user_id: whose history it is, for models that read users; others pass it over.

        Raises:
            ValueError: k below 1, a history without an item that can be read, an unknown category, a filter
                that is none or asks for what no item has, a field that no item has, or a blank title.
        """
        if k < 1:
            raise ValueError(f"k is {k}; ask for 1 item or more")
        beside = item_fields(fields, self._with_fields)
        items = self._resolve(history)
        seen = self._seen(items) if exclude_seen else []
        left_out = [row for row in map(self.catalog.row, exclude) if row is not None]
        read = read_history(items[-self._loaded.reader.history_limit :], self._read_titles)
        wanted = ListQuery(
            min(k, len(self.catalog)),
            np.array(sorted({*seen, *left_out}), np.int64),
            self._allowed(categories, filter),
        )
        rows, scores = self._answer(read, wanted, user_id)
        return [
            RecommendedItem(
                self.catalog.item_ids[row],
                self.catalog.titles[row],
                float(score),
                **beside.of(row, self._with_fields),
            )
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
            if row >= 0
        ]

    def _answer(
        self, read: Sequence[int | FreeItem], wanted: ListQuery, user_id: str | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        loaded = self._loaded
        if loaded.kind == "generative":
            (found,) = loaded.model.write([loaded.model.prepare(read, user_id)], [wanted])
            return found.rows_K, found.scores_K
        user_1D = loaded.encoder.encode([loaded.encoder.prepare(read)])
        scores_1K, rows_1K = loaded.index.search(user_1D, wanted.k, [wanted.exclude], wanted.allowed)
        return rows_1K[0], scores_1K[0]

    def _resolve(self, history: Sequence[Item]) -> list[int | str]:
        """Rows of known ids and free titles, in order."""
        found: list[int | str] = []
        for item in history:
            if isinstance(item, str):
                row = self.catalog.row(item)
                found += [] if row is None else [row]
            else:
                found.append(_title(item))
        if not found:
            raise ValueError(
                f"history holds {len(history)} items, and none of them is in the catalog of {len(self.catalog)} items"
            )
        return found

    def _seen(self, items: Sequence[int | str]) -> list[int]:
        """Rows of the items, and of those that have one of the titles."""
        return [row for item in items for row in ([item] if isinstance(item, int) else self.catalog.titled(item))]

    def _read_titles(self, titles: Sequence[str]) -> list[FreeItem]:
        if "text" not in self._loaded.reads:
            raise ValueError(
                f"history holds a free title, and artifact {self.name!r} (recipe {self.recipe!r}) reads "
                f"{' and '.join(self._loaded.reads)} only"
            )
        return self._loaded.reader.read_titles(titles)

    def _allowed(self, categories: Sequence[str], wanted: Mapping[str, Any] | None) -> NDArray[np.int64] | None:
        table = self.catalog.table if wanted is not None or categories else None
        if table is None:
            return None
        if unknown := sorted(set(categories) - set(self.catalog.known_categories)):
            raise ValueError(f"category {unknown[0]!r} is not in the catalog")
        parts: list[Filter] = [in_categories(categories)] if categories else []
        if wanted is not None:
            passing = read_filter(wanted)
            check_filter(
                passing, lambda name: table.kinds.get(name, frozenset()), lambda: self.catalog.known_attributes
            )
            parts.append(passing)
        return table.rows(every(parts))


def load(
    folder: Path | str, *, device: str = "cpu", precision: PrecisionAsked = "fp32", download: bool = False
) -> LocalRecommender:
    """Load the artifact in a folder.

    Args:
        folder: an artifact of either kind.
        device: where the model runs: ``cpu``, ``cuda``, ``cuda:1``, …
        precision: of a language model: ``fp32``, ``bf16``, ``int8`` or ``auto``, which measures.
        download: whether a hub may be asked for a backbone that has a hash and is not on this machine.

    Raises:
        StartError: the artifact cannot be loaded; one sentence.
    """
    return LocalRecommender(open_artifact(Path(folder), device, precision, download=download))


def _title(item: Mapping[str, str]) -> str:
    given = item.get("title")
    if set(item) != {"title"} or not isinstance(given, str):
        raise ValueError(f"an item of history is {dict(item)!r:.80}; it is an id or {{'title': …}}")
    if not (plain := plain_text(given)):
        raise ValueError("the title of an item of history is blank; write what the item is called")
    return plain
