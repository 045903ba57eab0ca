"""Hyper-parameters searched by Optuna (Akiba et al. 2019) with TPE, on validation alone.

The study is a journal of JSON lines beside the best artifact, so that a search that was stopped goes on: finished
trials count, and a trial that was cut off is begun again with its settings and goes on from its checkpoint. The first
trial is the recipe as it is, so a search never ends below it on validation.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from index.command_line.one_writer import one_writer
from modeling.artifact.targets import SEARCH
from training.data.dataset import Dataset
from training.data.report import DataError
from training.loop.budget import OutOfTime
from training.recipe import Recipe, RecipeError, with_settings
from training.run import RunOptions, run
from training.search_space.ranges import Between, Space

METRIC = "ndcg@10"
JOURNAL, BEST, ARTIFACT, TRIALS = "study.log", "best.json", "artifact", "trials"


@dataclass(frozen=True)
class Limits:
    """When a search ends: finished trials in all, minutes of this call, and minutes of one training (None: no end)."""

    trials: int
    minutes: float | None = None
    trial_minutes: float | None = None


def tune(
    recipe: Recipe, space: Space, dataset: Dataset, options: RunOptions, limits: Limits, console: Console
) -> dict[str, Any]:
    """Search ``space`` and keep the best artifact; returns what ``best.json`` holds.

    Args:
        recipe: where settings of the space are set.
        space: settings that are searched.
        dataset: trained on; only its validation part selects.
        options: of each training; ``out`` is the folder of the search.
        limits: when to end.
        console: for progress.

    Raises:
        DataError: the folder holds a search of other data or another recipe.
        RecipeError: Optuna is missing, or no trial gave a figure.
        BeingWrittenError: another search writes the same folder.
    """
    with one_writer(options.out):
        return _tune(recipe, space, dataset, options, limits, console)


def _tune(
    recipe: Recipe, space: Space, dataset: Dataset, options: RunOptions, limits: Limits, console: Console
) -> dict[str, Any]:
    out = options.out
    _claim(out, recipe, space, dataset, options)
    study = _study(out, options.seed)
    _go_on(study, recipe, space)
    started, longest = time.monotonic(), limits.trial_minutes or 0.0
    while (done := len(_finished(study))) < limits.trials:
        spent = (time.monotonic() - started) / 60
        if limits.minutes is not None and spent + longest > limits.minutes:
            console.print(f"the time budget of {limits.minutes:g} min leaves no room for another trial")
            break
        left = f"; about {(limits.trials - done) * longest:.1f} min left" if longest else ""
        trial = study.ask()
        settings = _drawn(trial, space)
        console.print(f"trial {done + 1} of {limits.trials}{left}: {' '.join(settings)}", markup=False, highlight=False)
        begun = time.monotonic()
        _try(study, trial, recipe, settings, dataset, replace(options, time_budget=limits.trial_minutes), console)
        longest = max(longest, (time.monotonic() - begun) / 60)
    return _best(study, out)


def _try(
    study: Any,
    trial: Any,
    recipe: Recipe,
    settings: Sequence[str],
    dataset: Dataset,
    options: RunOptions,
    console: Console,
) -> None:
    """Train with some settings, tell the study, and keep the artifact where it is the best so far."""
    from optuna.trial import TrialState

    digest = hashlib.sha256(" ".join(settings).encode()).hexdigest()[:10]
    folder = options.out / TRIALS / digest
    try:
        result = run(with_settings(recipe, settings), dataset, replace(options, out=folder), console)
    except (RecipeError, OutOfTime, FloatingPointError) as error:
        console.print(f"this trial gives no figure: {error}", markup=False, highlight=False)
        trial.set_user_attr("error", str(error)[:300])
        study.tell(trial, state=TrialState.FAIL)
        return
    trial.set_user_attr("settings", list(settings))
    trial.set_user_attr("version", result.manifest.version)
    best = max((each.value for each in _finished(study) if each.value is not None), default=float("-inf"))
    value = result.validation[METRIC]
    if value > best:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(options.out / ARTIFACT)
        folder.rename(options.out / ARTIFACT)
    else:
        shutil.rmtree(folder)
    study.tell(trial, value)
    console.print(f"validation {METRIC} {value:.4f}, best {max(value, best):.4f}", highlight=False)


def _study(out: Path, seed: int) -> Any:
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise RecipeError("the search needs Optuna: install anyo with the extra 'tune'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(out / JOURNAL)))
    study = optuna.create_study(storage=storage, study_name="tune", direction="maximize", load_if_exists=True)
    study.sampler = optuna.samplers.TPESampler(seed=(seed + len(study.trials)) % 2**32)
    return study


def _finished(study: Any) -> list[Any]:
    """Trials that ended, with a figure or with an error; those that a kill cut off have neither."""
    return [trial for trial in study.trials if trial.value is not None or "error" in trial.user_attrs]


def _go_on(study: Any, recipe: Recipe, space: Space) -> None:
    """Begin with the recipe as it is; begin trials again that a kill cut off."""
    from optuna.trial import TrialState

    if not study.trials:
        study.enqueue_trial(_as_it_is(recipe, space))
        return
    for trial in study.trials:
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)


def _as_it_is(recipe: Recipe, space: Space) -> dict[str, Any]:
    """The recipe's own values of the settings that are searched, those inside their ranges."""
    data, found = recipe.model_dump(), {}
    for path, range_ in space.items():
        value: Any = data
        for part in path.split("."):
            value = value[part]
        if isinstance(range_, Between):
            inside = isinstance(value, (int, float)) and range_.low <= value <= range_.high
        else:
            inside = value in range_.values
        if inside:
            found[path] = value
    return found


def _drawn(trial: Any, space: Space) -> list[str]:
    """Settings of a trial, as they are given with ``--set``."""
    settings = []
    for path, range_ in space.items():
        if not isinstance(range_, Between):
            value = trial.suggest_categorical(path, list(range_.values))
        elif range_.whole:
            value = trial.suggest_int(path, int(range_.low), int(range_.high), log=range_.log)
        else:
            value = trial.suggest_float(path, range_.low, range_.high, log=range_.log)
        settings.append(f"{path}={value if isinstance(value, str) else json.dumps(value)}")
    return settings


def _best(study: Any, out: Path) -> dict[str, Any]:
    """Write and return the best settings and what came of every trial."""
    finished = _finished(study)
    good = [trial for trial in finished if trial.value is not None]
    if not good:
        raise RecipeError(f"no trial gave a figure; why stands in {out / JOURNAL}")
    best = max(good, key=lambda trial: (trial.value, -trial.number))
    rows = [
        {"number": each.number, METRIC: each.value, "settings": each.params, "error": each.user_attrs.get("error")}
        for each in finished
    ]
    facts = {
        "settings": best.user_attrs["settings"],
        f"validation_{METRIC}": best.value,
        "artifact": str(out / ARTIFACT),
        "version": best.user_attrs["version"],
        "trials": rows,
    }
    (out / BEST).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def _claim(out: Path, recipe: Recipe, space: Space, dataset: Dataset, options: RunOptions) -> None:
    """Say in the folder which search it holds; raises `DataError` where it is another one."""
    decides = [recipe.model_dump(mode="json"), {name: repr(range_) for name, range_ in space.items()}]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:16]
    facts = {
        "search_of": recipe.name, "recipe_and_space": digest, "data_sha256": dataset.sha256, "ties": dataset.ties,
        "seed": options.seed, "split": options.split, "precision": options.precision,
        "id_model": str(options.id_model), "teacher": str(options.teacher),
    }  # fmt: skip
    path = out / SEARCH
    if not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts) + "\n", encoding="utf-8")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    if different := [name for name, value in facts.items() if found.get(name) != value]:
        raise DataError(f"{out} holds a search with another {', '.join(different)}: name another --out")
