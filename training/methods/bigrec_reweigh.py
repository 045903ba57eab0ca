"""Replaces the collaborative model of a BIGRec artifact and chooses its exponents again; the language model is kept.

A collaborative model trains in minutes, a language model in hours. Between two trainings of the language model, this
keeps the weights up to date.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from rich.console import Console

from modeling.artifact.manifest import Manifest
from modeling.methods.base_generative import load_generative
from modeling.methods.bigrec import BigRecGenerator
from modeling.methods.dense import ArtifactError, read_dense
from modeling.methods.dense_scores import CollaborativeModel
from training.data.dataset import Dataset
from training.loop.fit import sample_targets
from training.methods.base import Job, check_id_model, split_of
from training.methods.base_generative import FittedGenerator
from training.methods.bigrec import BigRecSettings, BigRecTraining
from training.methods.bigrec_exponents import choose_exponents
from training.provenance import id_model_record, require_same_data, require_same_ties
from training.recipe import Recipe, with_settings


def reweigh(
    artifact: Path, dataset: Dataset, out: Path, *, collaborative: Path | None, seed: int, console: Console
) -> Manifest:
    """Write a copy of ``artifact`` to ``out`` with new weights from popularity and ``collaborative``.

    Args:
        artifact: of the recipe ``bigrec``.
        dataset: the data set it was trained on; exponents are chosen on its validation part.
        out: folder to write.
        collaborative: dense artifact of the same catalog; None: popularity alone.
        seed: of the sample of validation users.
        console: for progress.

    Raises:
        ArtifactError: ``artifact`` has another recipe, or was trained on other data or on validation; or
            ``collaborative`` has other items or was trained on validation.
    """
    loaded = load_generative(artifact)
    manifest, writer = loaded.manifest, cast(BigRecGenerator, loaded.model)
    if manifest.method.kind != BigRecTraining.kind:
        raise ArtifactError(f"{artifact} holds recipe {manifest.recipe!r}, which weighs nothing: only 'bigrec' does")
    label = str(artifact)
    require_same_data(label, manifest, dataset)
    require_same_ties(label, manifest, dataset)
    if manifest.fitted_on != "train":
        raise ArtifactError(
            f"{label} was fitted on {manifest.fitted_on}: exponents are chosen on validation, which was trained on"
        )
    requires = None if collaborative is None else read_dense(collaborative)[0].recipe
    recipe = with_settings(Recipe.of_data(manifest.recipe_data), [f"requires={requires or ''}"])
    split = split_of(dataset, manifest.split)
    if collaborative is not None:
        check_id_model(recipe, split, collaborative)
    writer.collaborative = None if collaborative is None else CollaborativeModel(collaborative, dataset.n_items)
    targets = sample_targets(split.validation, cast(BigRecSettings, recipe.method).validation_users, seed)
    report = choose_exponents(writer, targets, console=console)
    training = {name: value for name, value in manifest.training.items() if name != "id_model"}
    if collaborative is not None:
        training["id_model"] = id_model_record(collaborative)
    method = BigRecTraining(Job(recipe, split, console, id_model=collaborative))
    method.fitted = FittedGenerator(writer=writer, report=report)
    validation = method.validate(seed)
    return method.write(
        out,
        fitted_on=manifest.fitted_on,
        metrics={f"validation_{name}": interval.value for name, interval in validation.accuracy.items()},
        training={**training, **report, "reweighed_from": manifest.version},
    )
