"""Writes a trained model as an artifact folder: weights, catalog, index, golden histories, manifest."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from index import Catalog, FlatIndex
from index.filters.stored import attributes_text
from modeling.artifact.atomic import replaced_folder
from modeling.artifact.golden import write_golden
from modeling.artifact.manifest import Manifest
from modeling.methods import get_method, save
from modeling.methods.base import HistoryEncoder, ListMethod, VectorMethod
from modeling.methods.dense import write_manifest, write_model
from training.data.splits import FittedOn, Split
from training.evaluation.full_ranking import encode_users
from training.evaluation.golden import golden_cases, with_titles, written_cases
from training.loop.fit import Fitted
from training.recipe import Recipe
from training.served_index import write_index

GOLDEN_CASES = 10
RECALL_USERS = 256
"""Number of users whose vectors measure the recall of an approximate index."""


class RunFacts(TypedDict):
    """Facts of a run in the manifest: the part that was fitted on, validation figures, and the training record."""

    fitted_on: FittedOn
    metrics: dict[str, float]
    training: dict[str, Any]


def write_artifact(
    folder: Path,
    recipe: Recipe,
    split: Split,
    fitted: Fitted,
    *,
    golden_histories: int = GOLDEN_CASES,
    **facts: Unpack[RunFacts],
) -> Manifest:
    """Write the artifact to a temporary folder and rename it to ``folder``, which so never holds a partial artifact.

    ``golden_histories``: real histories whose answers every load repeats.
    """
    model = fitted.model
    model.encoder.eval()
    with replaced_folder(folder) as work:
        vectors_ND = write_model(model, work)
        catalog = _write_catalog(work, split, facts["fitted_on"])
        encoder = model.encoder
        chosen = _histories(split, encoder.history_limit, golden_histories)
        histories = with_titles(chosen, catalog, model.spec.history.reads_text)
        golden = golden_cases(encoder, FlatIndex.build(vectors_ND), catalog, histories)
        write_golden(work, golden)
        write_index(
            work / "index", recipe.index, vectors_ND, golden, catalog, users=partial(_user_vectors, encoder, split)
        )
        return write_manifest(
            work,
            model,
            **_facts(folder, recipe, split),
            **facts,
        )


def write_counted_artifact(
    folder: Path, recipe: Recipe, split: Split, model: VectorMethod, **facts: Unpack[RunFacts]
) -> Manifest:
    """As `write_artifact`, for a `VectorMethod` with an index of its own."""
    with replaced_folder(folder) as work:
        catalog = _write_catalog(work, split, facts["fitted_on"])
        histories = _histories(split, model.encoder.history_limit, GOLDEN_CASES)
        return save(
            work,
            get_method(recipe.method.kind),
            model,
            golden_cases(model.encoder, model.index(), catalog, histories),
            catalog_size=len(catalog),
            **_facts(folder, recipe, split),
            **facts,
        )


def write_list_artifact(
    folder: Path,
    recipe: Recipe,
    split: Split,
    model: ListMethod,
    *,
    golden_histories: int = GOLDEN_CASES,
    **facts: Unpack[RunFacts],
) -> Manifest:
    """As `write_artifact`, for a `ListMethod`."""
    with replaced_folder(folder) as work:
        catalog = _write_catalog(work, split, facts["fitted_on"])
        chosen = _histories(split, model.history_limit, golden_histories)
        histories = with_titles(chosen, catalog, "text" in model.reads)
        return save(
            work,
            get_method(recipe.method.kind),
            model,
            written_cases(model, catalog, histories),
            catalog_size=len(catalog),
            **_facts(folder, recipe, split),
            **facts,
        )


def _write_catalog(work: Path, split: Split, fitted_on: FittedOn) -> Catalog:
    catalog = catalog_of(split, fitted_on)
    catalog.write(work / "catalog.parquet")
    return catalog


def _facts(folder: Path, recipe: Recipe, split: Split) -> dict[str, Any]:
    """Facts of the run that the manifests of all kinds of artifacts hold."""
    return {
        "name": folder.name,
        "recipe": recipe.name,
        "recipe_data": recipe.model_dump(mode="json"),
        "data": split.dataset.name,
        "data_sha256": split.dataset.sha256,
        "split": split.name,
        "commit": current_commit(),
    }


def catalog_of(split: Split, fitted_on: FittedOn) -> Catalog:
    """The catalog in row order, popularity counted on what the model was fitted on."""
    data = split.dataset
    attributes = tuple(map(attributes_text, data.attributes)) if any(data.attributes) else ()
    return Catalog(data.item_ids, data.titles, data.categories, split.popularity(fitted_on), fitted_on, attributes)


def _histories(split: Split, limit: int, count: int) -> list[list[int]]:
    """Training histories from the shortest to the longest, evenly by rank of length."""
    lengths: NDArray[np.int64] = np.minimum(split.train_lengths_U, limit)
    users = np.argsort(lengths, kind="stable")
    users = users[lengths[users] > 0]
    chosen: Sequence[int] = users[np.linspace(0, len(users) - 1, count).astype(int)].tolist()
    return [split.train_row(user)[-limit:].tolist() for user in chosen]


def _user_vectors(encoder: HistoryEncoder, split: Split) -> NDArray[np.float32]:
    """Vectors of a seeded sample of users, made from their training histories."""
    users = np.random.default_rng(0).permutation(np.flatnonzero(split.train_lengths_U > 0))[:RECALL_USERS]
    return encode_users(encoder, [split.train_row(int(user)) for user in users])


def current_commit() -> str | None:
    """The commit this runs from, with ``+`` where the tree differs from it; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
