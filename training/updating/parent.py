"""The artifact that an update starts from, held against the data that it is to learn.

The new data has to continue what the parent was trained on: all its items are there, and nothing that is asked on
validation or test was a training target of the parent. The parent does not hold its data, so that this follows from
what its artifact says: how often each item was trained on, and until when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index import Catalog
from modeling.artifact.manifest import ArtifactError, Manifest, open_files
from modeling.artifact.verified import Files
from modeling.methods.dense import read_dense
from modeling.methods.dense_files import DenseRecord
from training.data.report import DataError
from training.data.splits import MIN_LENGTH, Split, Targets
from training.provenance import require_same_split, require_same_ties, require_unseen_validation
from training.recipe import Recipe, RecipeError, with_settings

SHARE = 0.2
"""Of the epochs of a full training."""


@dataclass(frozen=True)
class Parent:
    """A trained dense artifact.

    Attributes:
        files: of the artifact, compared with its manifest when they are read.
        manifest, record, catalog: what it says of itself.
    """

    files: Files
    manifest: Manifest
    record: DenseRecord
    catalog: Catalog

    @classmethod
    def open(cls, folder: Path) -> Parent:
        """Read everything but weights; raises `ArtifactError`."""
        files, manifest = open_files(folder)
        content = files.read("catalog.parquet")
        catalog = Catalog.parse(content, folder / "catalog.parquet", manifest.catalog_size)
        return cls(files, manifest, read_dense(files)[1], catalog)

    @property
    def label(self) -> str:
        """Name of the artifact in messages."""
        return f"artifact {self.files.name}"

    def rows(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """Its row of each item, -1 for one that it does not know [N]."""
        return rows_in(self.catalog, item_ids)

    def record_of(self, recipe: Recipe, split: Split, unasked: int) -> dict[str, Any]:
        """Record of the parent in the manifest of an update."""
        before = self.manifest.training.get("update", {})
        return {
            "parent": self.manifest.version,
            "parent_data_sha256": self.manifest.data_sha256,
            "ancestors": [self.manifest.version, *before.get("ancestors", [])],
            "full_epochs": full_epochs(self.manifest),
            "epochs_asked": recipe.optimizer.epochs,
            "new_items": split.dataset.n_items - len(self.catalog),
            "unasked_validation": unasked,
        }


def rows_in(catalog: Catalog, item_ids: Sequence[str]) -> NDArray[np.int64]:
    """The catalog's row of each item, -1 for one that it does not hold [N]."""
    found = (catalog.row(item_id) for item_id in item_ids)
    return np.fromiter((-1 if row is None else row for row in found), np.int64, len(item_ids))


def full_epochs(manifest: Manifest) -> float:
    """Epochs of the full training at the beginning of a chain of updates."""
    epochs: float = manifest.training.get("update", {}).get("full_epochs", manifest.training.get("epochs", 0.0))
    return epochs


def recipe_of_update(manifest: Manifest, share: float, settings: Sequence[str]) -> Recipe:
    """The parent's recipe with fewer epochs.

    Args:
        manifest: of the parent.
        share: of the epochs of the full training, at least one epoch.
        settings: ``optimizer.field=value`` and ``index.field=value``; others would make another model.

    Raises:
        RecipeError: another setting, or one that has no effect.
    """
    if other := [each for each in settings if each.partition(".")[0] not in ("optimizer", "index")]:
        raise RecipeError(f"setting {other[0]!r} would make another model: an update takes optimizer.* and index.*")
    epochs = max(1, round(share * full_epochs(manifest)))
    given = [] if any(each.startswith("optimizer.epochs=") for each in settings) else [f"optimizer.epochs={epochs}"]
    recipe = with_settings(Recipe.of_data(manifest.recipe_data), [*given, *settings])
    if not recipe.optimizer.epochs:
        raise RecipeError("optimizer.epochs=0 trains nothing, and an update trains: give 1 or more")
    return recipe


def continued(parent: Parent, split: Split) -> tuple[Split, int]:
    """The split without validation questions whose answers the parent may have been trained on, and their number.

    With leave-one-out these are of users with three interactions: a user of two was trained on whole.

    Raises:
        ArtifactError: the parent has seen other answers, or its data had other items, ties or splits.
        DataError: the data is that of the parent, or has no question left.
    """
    manifest, data = parent.manifest, split.dataset
    if manifest.data_sha256 == data.sha256:
        raise DataError(f"{parent.label} was trained on this very data: there is nothing to update it with")
    require_same_split(parent.label, manifest, split.name)
    require_unseen_validation(parent.label, manifest, parent.files.folder)
    require_same_ties(parent.label, manifest, data)
    if removed := [item for item in parent.catalog.item_ids if item not in data.row_of]:
        raise ArtifactError(
            f"{data.name} lacks {len(removed):,} items of {parent.label}, first {removed[0]!r:.60}: an update adds "
            "items and removes none; keep them in the items file, or train anew"
        )
    if split.name.startswith("leave-one-out"):
        return _one_left_out(parent, split)
    _require_earlier(parent, split)
    return split, 0


def _one_left_out(parent: Parent, split: Split) -> tuple[Split, int]:
    data, asked = split.dataset, split.validation
    if data.ties != "file":
        raise ArtifactError(
            f"ties of {data.name} are {data.ties!r}: another order of more interactions makes training targets of "
            f"{parent.label} into questions; train it with --ties file"
        )
    short_T = data.lengths_U[asked.users_T] == MIN_LENGTH
    most_N = split.popularity() + np.bincount(asked.rows_T[short_T], minlength=data.n_items)
    rows_N = parent.rows(data.item_ids)
    trained_N = np.where(rows_N >= 0, parent.catalog.popularity[rows_N], 0)
    if (over := np.flatnonzero(trained_N > most_N)).size:
        row = int(over[0])
        raise ArtifactError(
            f"{parent.label} was trained on {trained_N[row]:,} interactions with item {data.item_ids[row]!r:.60}, and "
            f"{data.name} has {most_N[row]:,} to train on: it does not continue the data of the parent, so that the "
            "parent may have seen what is asked for"
        )
    known_T = short_T & (rows_N[asked.rows_T] >= 0)
    if known_T.all():
        raise DataError(f"{data.name}: no user has more than {MIN_LENGTH} interactions, so nothing can be validated")
    kept = Targets(data, asked.users_T[~known_T], asked.positions_T[~known_T])
    return replace(split, validation=kept), int(known_T.sum())


def _require_earlier(parent: Parent, split: Split) -> None:
    until = parent.manifest.training.get("trained_until")
    if until is None:
        raise ArtifactError(f"{parent.label} does not say until when it was trained: train it anew with this version")
    asked, data = split.validation, split.dataset
    first = data.timestamps[data.offsets_U1[asked.users_T] + asked.positions_T].min()
    if first <= until:
        raise ArtifactError(
            f"{parent.label} was trained on interactions until {until:g}, and {data.name} asks for ones from "
            f"{first:g} on: the parent may have seen what is asked for"
        )


def ancestors_of(manifests: Sequence[Manifest], data_sha256: str) -> frozenset[str]:
    """Versions of artifacts that those among ``manifests`` that were trained on this data were updated from."""
    updates = [each.training.get("update", {}) for each in manifests if each.data_sha256 == data_sha256]
    return frozenset(version for each in updates for version in each.get("ancestors", []))
