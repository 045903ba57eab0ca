"""The command `tune`: hyper-parameters of a recipe, searched on validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from index.command_line.time_limit import minutes
from training.cli_common import (
    LARGEST_SEED,
    Allow,
    IdModel,
    Json,
    SplitName,
    Ties,
    check_out,
    check_precision,
    errors_as_one_line,
    open_dataset,
    use_cores,
)

console = Console(stderr=True)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(tune)


def tune(
    recipe: Annotated[str, typer.Argument(help="Name of the recipe; its file holds the space that is searched.")],
    data: Annotated[str, typer.Option(help="Name of a data set or a folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the search: study, best settings, best artifact.")],
    trials: Annotated[int, typer.Option(min=1, max=100_000, help="Trials in all, those of earlier calls too.")] = 20,
    time_budget: Annotated[
        float | None, typer.Option(callback=minutes, help="Begin no trial that would end after so many minutes.")
    ] = None,
    trial_budget: Annotated[
        float | None, typer.Option(callback=minutes, help="Minutes of each training; its best epoch counts.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="As for `train`.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.field=value, the same in every trial; repeatable.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    split: SplitName = "leave-one-out",
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of trainings, search and shuffled ties.")
    ] = 0,
    ties: Ties = "file",
    id_model: IdModel = None,
    teacher: Annotated[Path | None, typer.Option(help="Lists that a recipe learns from; see `teacher`.")] = None,
    allow: Allow = None,
    as_json: Json = False,
) -> None:
    """Search a recipe's settings on validation with Optuna. Started again, it goes on with its study."""
    with errors_as_one_line(console):
        check_out(out, data, id_model, backbone, teacher, kind="search")
        from training.recipes import RecipeError, get_recipe, refuse_repeats
        from training.run import RunOptions
        from training.search_space.ranges import space_of
        from training.tuning.search import Limits
        from training.tuning.search import tune as search

        check_precision(precision, "fp32", "bf16")
        refuse_repeats(settings or [])
        chosen = get_recipe(recipe, settings or [], backbone=backbone)
        fixed = {setting.partition("=")[0] for setting in settings or []}
        space = {path: range_ for path, range_ in space_of(recipe).items() if path not in fixed}
        if not space:
            raise RecipeError(
                f"every setting of the space of {recipe!r} is fixed with --set: nothing is left to search"
            )
        dataset = open_dataset(data, ties=ties, seed=seed, strict=False, allow=allow, console=console)
        use_cores()
        options = RunOptions(
            out=out, seed=seed, precision=precision, split=split, id_model=id_model, teacher=teacher,  # type: ignore[arg-type]
        )  # fmt: skip
        best = search(chosen, space, dataset, options, Limits(trials, time_budget, trial_budget), console)
    figure = best["validation_ndcg@10"]
    words = " ".join(f"--set {setting}" for setting in best["settings"])
    console.print(f"best of {len(best['trials'])} trials: validation NDCG@10 {figure:.4f}", highlight=False)
    print(json.dumps(best) if as_json else words)
