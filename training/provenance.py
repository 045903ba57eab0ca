"""Checks what an artifact was trained on, before figures are made with it on data that it must not have seen."""

from __future__ import annotations

from pathlib import Path

from index import Catalog
from modeling.artifact.manifest import MANIFEST, ArtifactError, Manifest, read_manifest
from modeling.methods.dense_scores import COLLABORATIVE
from training.data.dataset import Dataset


def id_model_record(folder: Path) -> dict[str, str]:
    """Which artifact another one was built on, for the manifest of that one."""
    manifest = read_manifest(folder)
    return {"recipe": manifest.recipe, "version": manifest.version}


def require_same_data(label: str, manifest: Manifest, dataset: Dataset) -> None:
    """Refuse an artifact of other data.

    Raises:
        ArtifactError: the hash of the data differs, so its training part may hold what is asked for here.
    """
    if manifest.data_sha256 != dataset.sha256:
        raise ArtifactError(
            f"{label} was trained on other data ({manifest.data!r}, sha256 {manifest.data_sha256[:12]}…) than "
            f"{dataset.name!r} (sha256 {dataset.sha256[:12]}…)"
        )


def require_same_split(label: str, manifest: Manifest, split: str) -> None:
    """Refuse an artifact of another split; raises ``ArtifactError``."""
    if manifest.split != split:
        raise ArtifactError(
            f"{label} was trained on split {manifest.split!r}, and this is {split!r}: targets would have been trained "
            "on"
        )


def require_same_ties(label: str, manifest: Manifest, dataset: Dataset) -> None:
    """Refuse an artifact of another order of ties; manifests written before there was a choice do not say.

    Raises:
        ArtifactError: the order differs, so other interactions are targets.
    """
    ties = manifest.training.get("ties", dataset.ties)
    if ties != dataset.ties:
        raise ArtifactError(
            f"{label} was trained with ties {ties!r}, and the data was read with {dataset.ties!r}: "
            "targets would have been trained on; give the same --ties and --seed"
        )


def require_unseen_validation(label: str, manifest: Manifest, folder: Path) -> None:
    """Refuse an artifact that has seen validation, by itself or in the collaborative model that it holds.

    Raises:
        ArtifactError: it was fitted on validation.
    """
    if manifest.fitted_on != "train":
        raise ArtifactError(f"{label} was fitted on {manifest.fitted_on}: validation was trained on")
    inside = folder / COLLABORATIVE
    if (inside / MANIFEST).exists() and (found := read_manifest(inside)).fitted_on != "train":
        raise ArtifactError(
            f"{label} holds a collaborative model that was fitted on {found.fitted_on}: validation was trained on"
        )


def require_all_validation(label: str, manifest: Manifest) -> None:
    """Refuse an update whose parent may have been trained on some answers of validation; raises `ArtifactError`."""
    if unasked := manifest.training.get("update", {}).get("unasked_validation"):
        raise ArtifactError(
            f"{label} is an update, and its parent may have been trained on {unasked:,} answers of validation"
        )


def require_same_questions(
    folder: Path, manifest: Manifest, catalog: Catalog, dataset: Dataset, part: str, *, ancestor: bool = False
) -> None:
    """Refuse what would rank other items than were trained, or ask what was trained on.

    ``ancestor``: the artifact is one that an artifact of this data was updated from, so that it may lack items.

    Raises:
        ArtifactError: another catalog or order of ties, or ``part`` is validation and was trained on.
    """
    label = f"artifact {folder.name}"
    if not ancestor and catalog.item_ids != dataset.item_ids:
        raise ArtifactError(
            f"{label} was trained on another catalog ({manifest.catalog_size} items) than "
            f"{dataset.name} ({dataset.n_items} items, or in another order)"
        )
    require_same_ties(label, manifest, dataset)
    if part == "validation":
        require_unseen_validation(label, manifest, folder)
        require_all_validation(label, manifest)
