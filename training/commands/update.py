"""The command `update`: an artifact learns what has happened since it was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.cli_common import (
    LARGEST_SEED,
    Allow,
    Json,
    KeepWork,
    Strict,
    TrainingBudget,
    check_out,
    errors_as_one_line,
    open_dataset,
    use_cores,
)
from training.cli_common import share as checked_share

console = Console(stderr=True)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(update)


def update(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder of a dense recipe, trained without --refit.")],
    data: Annotated[str, typer.Option(help="The data it was trained on and what came since (name or folder).")],
    out: Annotated[Path, typer.Option(help="Artifact folder to write.")],
    share: Annotated[
        float,
        typer.Option(callback=checked_share, help="Share of the epochs of its full training, at least one epoch."),
    ] = 0.2,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="optimizer.field=value or index.field=value; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of new items, data order and dropout.")] = 0,
    time_budget: TrainingBudget = None,
    id_model: Annotated[
        Path | None, typer.Option(help="Artifact that a recipe with `requires` builds on, of the new data.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Lists of another artifact for the new data, where its recipe learns from some.")
    ] = None,
    strict: Strict = False,
    allow: Allow = None,
    keep_work: KeepWork = False,
    as_json: Json = False,
) -> None:
    """Train an artifact on with newer data, new items included, for a fraction of a full training."""
    with errors_as_one_line(console):
        check_out(out, data, artifact, id_model, teacher)
        from modeling.artifact.manifest import read_manifest
        from training.recipe import Recipe, refuse_repeats, training_method
        from training.run import RunOptions, check_updates, run
        from training.updating.parent import recipe_of_update

        refuse_repeats(settings or [])
        manifest = read_manifest(artifact)
        method = training_method(manifest.method.kind)
        check_updates(Recipe.of_data(manifest.recipe_data), method, artifact)
        recipe = recipe_of_update(manifest, share, settings or [])
        dataset = open_dataset(data, ties="file", seed=seed, strict=strict, allow=allow, console=console)
        use_cores()
        options = RunOptions(
            out=out, seed=seed, time_budget=time_budget, split=manifest.split, id_model=id_model, teacher=teacher,
            parent=artifact, keep_work=keep_work,
        )  # fmt: skip
        result = run(recipe, dataset, options, console)
    record = result.manifest.training
    about = record["update"]
    console.print(
        f"wrote {out} (version {result.manifest.version}), an update of {about['parent']}: {about['new_items']:,} new "
        f"items, {record['epochs']:.0f} epochs ({about['full_epochs']:.0f} in full) in {record['seconds'] / 60:.1f} "
        f"min; validation Recall@10 {result.validation['recall@10']:.4f}, NDCG@10 {result.validation['ndcg@10']:.4f}"
    )
    if as_json:
        found = {"artifact": str(out), "version": result.manifest.version, "update": about}
        print(json.dumps({**found, **result.validation.to_dict()}))
