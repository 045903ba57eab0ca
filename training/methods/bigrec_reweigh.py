"""Weighs a grounded writer anew: another collaborative model, exponents chosen again, the language model as it is.

A collaborative model learns of new interactions in minutes and a language model in hours; between two trainings of the
second, this keeps the weights up to date.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from index import Catalog
from index.trie import TokenTrie
from modeling.artifact.manifest import AnyManifest
from modeling.methods.bigrec import BigRecGenerator
from modeling.methods.bigrec_files import CollaborativeModel
from modeling.methods.dense import ArtifactError, read_manifest
from modeling.methods.generative import load_generative
from training.data.dataset import Dataset
from training.loop.fit import sample_targets
from training.methods.bigrec_exponents import choose_exponents
from training.methods.generative import FittedGenerator
from training.provenance import id_model_record, require_same_data, require_same_ties
from training.recipes.base import Recipe, with_settings
from training.run import Writing, check_id_model, split_of


def reweigh(
    artifact: Path, dataset: Dataset, out: Path, *, collaborative: Path | None, seed: int, console: Console
) -> AnyManifest:
    """Write a copy of ``artifact`` to ``out`` whose titles are weighed by popularity and by ``collaborative``.

    Args:
        artifact: of a recipe that grounds what it writes (``bigrec``).
        dataset: the one it was trained on; exponents are chosen on its validation part.
        out: folder to write.
        collaborative: dense artifact of the same catalog; None: popularity alone.
        seed: of the validation users that choose.
        console: for progress.

    Raises:
        ArtifactError: ``artifact`` grounds nothing, was trained on other data or has seen validation; or
            ``collaborative`` has other items or has seen what is asked for.
    """
    loaded = load_generative(artifact, TokenTrie.build, Catalog.read(artifact / "catalog.parquet").popular())
    manifest, writer = loaded.manifest, loaded.model
    if not isinstance(writer, BigRecGenerator):
        raise ArtifactError(f"{artifact} holds recipe {manifest.recipe!r}, which weighs nothing: only 'bigrec' does")
    label = str(artifact)
    require_same_data(label, manifest, dataset)
    require_same_ties(label, manifest, dataset)
    if manifest.fitted_on != "train":
        raise ArtifactError(
            f"{label} was fitted on {manifest.fitted_on}: exponents are chosen on validation, which was trained on"
        )
    requires = None if collaborative is None else read_manifest(collaborative).recipe
    recipe = with_settings(Recipe.model_validate(manifest.recipe_data), [f"requires={requires or ''}"])
    split = split_of(dataset, manifest.split)
    if collaborative is not None:
        check_id_model(recipe, split, collaborative)
    writer.collaborative = None if collaborative is None else CollaborativeModel(collaborative, dataset.n_items)
    targets = sample_targets(split.validation, recipe.writing.validation_users, seed)
    report = choose_exponents(writer, targets, console=console)
    fitted = FittedGenerator(writer=writer, report=report)
    training = {name: value for name, value in manifest.training.items() if name != "id_model"}
    if collaborative is not None:
        training["id_model"] = id_model_record(collaborative)
    way = Writing(recipe, split, None, collaborative, console, fitted)
    validation = way.validate(seed)
    return way.write(
        out,
        fitted_on=manifest.fitted_on,
        metrics={f"validation_{name}": interval.value for name, interval in validation.accuracy.items()},
        training={**training, **report, "reweighed_from": manifest.version},
    )
