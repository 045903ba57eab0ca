"""``python -m training``: train, evaluate, compare, recipes, data, floors.

Heavy imports stay inside the commands, so that ``--help`` and a mistyped option answer at once. Progress and messages
go to standard error; standard output has the result: a table, or with ``--json`` one JSON object and nothing else.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from index.command_line.border import BorderedGroup
from index.command_line.time_limit import TimeBudget, time_limit
from modeling.artifact.targets import check_target
from training import cli_data
from training.cli_common import (
    LARGEST_SEED,
    RANKING,
    Allow,
    IdModel,
    Json,
    KeepWork,
    Ledger,
    LedgerFile,
    SplitName,
    Strict,
    Ties,
    TrainingBudget,
    check_ledger,
    check_out,
    check_precision,
    check_top,
    errors_as_one_line,
    open_dataset,
    use_cores,
)
from training.commands import choose, compare, publish, tune, update

app = typer.Typer(
    name="training",
    cls=BorderedGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, evaluate and compare recommenders.",
)
cli_data.register(app)
choose.register(app)
compare.register(app)
tune.register(app)
update.register(app)
publish.register(app)
console = Console(stderr=True)

Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of initialisation, data order and dropout.")]
TieSeed = Annotated[
    int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of tie-breaking, intervals and shuffled ties.")
]


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Name of the recipe; see `recipes`.")],
    data: Annotated[str, typer.Option(help="Name of a data set or a folder; see `data --help`.")],
    out: Annotated[Path, typer.Option(help="Artifact folder to write.")],
    backbone: Annotated[
        str | None,
        typer.Option(help="tiny, minilm, smollm2, none, a Hugging Face name, a local folder or a GGUF file."),
    ] = None,
    seed: Seed = 0,
    time_budget: TrainingBudget = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.field=value, e.g. optimizer.epochs=20; repeatable.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16 (mixed precision), or auto: the faster of them, as measured here.")
    ] = "fp32",
    force_precision: Annotated[
        bool, typer.Option("--force-precision", help="Take --precision even where it is slower than fp32.")
    ] = False,
    split: SplitName = "leave-one-out",
    ties: Ties = "file",
    refit: Annotated[
        bool, typer.Option(help="After selecting, train anew on train + validation; for serving, not for tables.")
    ] = False,
    id_model: IdModel = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Lists of another artifact (see `teacher`) that a recipe learns from.")
    ] = None,
    strict: Strict = False,
    allow: Allow = None,
    keep_work: KeepWork = False,
    log: Annotated[
        list[str] | None,
        typer.Option(help="Record the run in a tracker too: mlflow, mlflow:URI, wandb or wandb:offline; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a recipe and write its artifact. Started again after a kill, it goes on from the last checkpoint."""
    with errors_as_one_line(console):
        check_out(out, data, id_model, backbone, teacher)
        from training.recipes import get_recipe, refuse_repeats
        from training.run import RunOptions, run
        from training.run_logs import facts_of, recorded

        check_precision(precision, "auto", "fp32", "bf16")
        refuse_repeats(settings or [])
        chosen = get_recipe(recipe, settings or [], backbone=backbone)
        dataset = open_dataset(data, ties=ties, seed=seed, strict=strict, allow=allow, console=console)
        use_cores()
        options = RunOptions(
            out=out,
            seed=seed,
            time_budget=time_budget,
            precision=precision,  # type: ignore[arg-type]
            precision_forced=force_precision,
            split=split,
            refit=refit,
            id_model=id_model,
            teacher=teacher,
            keep_work=keep_work,
        )
        asked = {"data": data, "data_sha256": dataset.sha256, "seed": seed, "split": split, "precision": precision}
        with recorded(log or [], out.name, facts_of(chosen, **asked)) as tracked:
            result = run(chosen, dataset, replace(options, follow=tracked.figures if log else None), console)
            tracked.finish({"artifact": str(out), "version": result.manifest.version}, result.manifest.metrics)
    record = result.manifest.training
    console.print(
        f"wrote {out} (version {result.manifest.version}): best epoch {record['best_epoch']:.0f} of "
        f"{record['epochs']:.0f} in {record['seconds'] / 60:.1f} min, stopped by {record['stopped_by']}; validation "
        f"Recall@10 {result.validation['recall@10']:.4f}, NDCG@10 {result.validation['ndcg@10']:.4f}"
    )
    if as_json:
        print(json.dumps({"artifact": str(out), "version": result.manifest.version, **result.validation.to_dict()}))


@app.command()
def teacher(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder, of any recipe.")],
    data: Annotated[str, typer.Option(help="The data set it was trained on (name or folder).")],
    out: Annotated[Path, typer.Option(help="Folder to write, new or empty.")],
    items: Annotated[int, typer.Option(min=1, max=1000, help="Items of a list.")] = 20,
    newest: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Targets of a user, the newest ones; left out: all.")
    ] = None,
    candidates_of: Annotated[
        Path | None,
        typer.Option(
            help="Dense artifact whose best unseen items a ranker scores; left out: the artifact's own lists."
        ),
    ] = None,
    shared: Annotated[
        bool,
        typer.Option(help="Targets that each read the newest items alone share passes; they then read at least half."),
    ] = False,
    seed: TieSeed = 0,
    ties: Ties = "file",
) -> None:
    """Write an artifact's lists for every training target, for a recipe that learns from them
    (dllm2rec, or any dense one with method.distillation.divergence over 0)."""
    with errors_as_one_line(console):
        check_out(out, data, artifact, candidates_of, kind="new")
        from training.compare import export_teacher

        dataset = open_dataset(data, ties=ties, seed=seed, strict=False, console=console)
        use_cores()
        found = export_teacher(
            artifact, dataset, out, top=items, newest=newest, console=console, candidates=candidates_of, shared=shared
        )
    console.print(f"wrote {out}: lists of {items} items for {len(found.users_R):,} training targets")


@app.command()
def reweigh(
    artifact: Annotated[Path, typer.Argument(help="Artifact of a recipe that grounds what it writes (bigrec).")],
    data: Annotated[str, typer.Option(help="The data set it was trained on (name or folder).")],
    out: Annotated[Path, typer.Option(help="Artifact folder to write.")],
    id_model: Annotated[
        Path | None, typer.Option(help="Dense artifact whose scores are weighed; without it popularity alone.")
    ] = None,
    seed: Seed = 0,
    ties: Ties = "file",
    allow: Allow = None,
    time_budget: TimeBudget = None,
    as_json: Json = False,
) -> None:
    """Choose the weights of a grounded writer anew, its language model untouched."""
    with errors_as_one_line(console), time_limit(time_budget):
        check_out(out, data, id_model, artifact)
        from training.methods.bigrec_reweigh import reweigh as weigh

        dataset = open_dataset(data, ties=ties, seed=seed, strict=False, allow=allow, console=console)
        use_cores()
        manifest = weigh(artifact, dataset, out, collaborative=id_model, seed=seed, console=console)
    found = manifest.metrics
    console.print(
        f"wrote {out} (version {manifest.version}): validation Recall@10 {found['validation_recall@10']:.4f}, "
        f"NDCG@10 {found['validation_ndcg@10']:.4f}"
    )
    if as_json:
        print(json.dumps({"artifact": str(out), "version": manifest.version, **found}))


@app.command()
def rewrite(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder, of this version or an earlier one.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; left out: the same, replaced in one step.")] = None,
    backbone: Annotated[
        Path | None, typer.Option(help="Where the local folder is now that it was trained on and does not hold.")
    ] = None,
    text_backbone: Annotated[Path | None, typer.Option(help="The same for the folder that read its titles.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="index.field=value: another index, e.g. index.kind=hnsw; repeatable."),
    ] = None,
    time_budget: TimeBudget = None,
) -> None:
    """Write an artifact as this version does: what it answers stays, parts that it lacked are added."""
    with errors_as_one_line(console), time_limit(time_budget):
        if out is not None:
            check_target(out, reads=[artifact, backbone, text_backbone])
        from modeling.encoder.build import Sources
        from training.recipe import index_settings
        from training.rewrite import rewrite as write_again

        manifest = write_again(
            artifact,
            out or artifact,
            sources=Sources(backbone, text_backbone),
            index=index_settings(settings or []),
        )
    console.print(f"wrote {out or artifact} (version {manifest.version}, schema {manifest.schema_version})")


@app.command()
def evaluate(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    data: Annotated[str, typer.Option(help="The data set it was trained on (name or folder), or another one.")],
    split_part: Annotated[str, typer.Option("--split", help="test or validation.")] = "test",
    seed: TieSeed = 0,
    ties: Ties = "file",
    top: Annotated[
        Path | None, typer.Option(help="Write each user's top-20 item ids here, one JSON line each.")
    ] = None,
    allow: Allow = None,
    ledger: Ledger = True,
    ledger_file: LedgerFile = None,
    time_budget: TimeBudget = None,
    as_json: Json = False,
) -> None:
    """Rank the whole catalog for every user of a split, seen items left out."""
    with errors_as_one_line(console), time_limit(time_budget):
        check_top(top, data, artifact)
        check_ledger(ledger, ledger_file)
        from training.compare import evaluate_artifact, write_top
        from training.evaluation.table import print_results

        dataset = open_dataset(data, ties=ties, seed=seed, strict=False, allow=allow, console=console)
        use_cores()
        row, answers = evaluate_artifact(
            artifact, dataset, split_part, seed=seed, ledger=ledger, ledger_file=ledger_file, console=console
        )
        if top is not None:
            write_top(top, answers, dataset)
    title = f"{artifact.name} on {dataset.name}, {split_part}"
    print_results(title, {artifact.name: answers.metrics}, RANKING, console if as_json else None)
    if "tasks" in row:
        console.print("task families: " + ", ".join(f"{name} {value:.4f}" for name, value in row["tasks"].items()))
    if as_json:
        print(json.dumps(row))


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes and what each is."""
    from training.recipes import get_recipe, recipe_names

    known = [get_recipe(name) for name in recipe_names()]
    if as_json:
        print(json.dumps({"recipes": [recipe.model_dump(mode="json") for recipe in known]}))
        return
    table = Table("recipe", "what it is", "source", title="recipes")
    for recipe in known:
        table.add_row(recipe.name, recipe.summary, recipe.source)
    Console().print(table)
