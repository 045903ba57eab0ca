"""A model card for an artifact: Markdown with front matter, made from its manifest and from a report of `compare`.

After Mitchell et al. 2019, "Model Cards for Model Reporting"; the front matter is that of the Hugging Face Hub.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from modeling.artifact.manifest import Manifest
from training.recipe import Recipe

LICENCES = {
    "minilm": "Apache-2.0 (all-MiniLM-L6-v2)",
    "smollm2": "Apache-2.0 (SmolLM2-135M-Instruct)",
}
"""Of weights that are named rather than given as a folder."""
NO_WEIGHTS = ("none", "tiny")
LIMITS = (
    "Figures are of one training with one seed; an interval is over users, not over trainings.",
    "Accuracy on past choices is not the effect on people: what was never shown could not be chosen.",
    "Items are known by their place in the catalog of the training data. Other catalogs need a training of their own.",
    "What is popular is recommended more than it is chosen where `popularity_lift` of the evaluation is above 0.",
)


def card(manifest: Manifest, report: Mapping[str, Any] | None = None) -> str:
    """The card of an artifact.

    Args:
        manifest: of it.
        report: of a comparison that it took part in, for test figures with intervals; None: validation figures alone.

    Raises:
        ValueError: the report has no run of this version on this data.
    """
    recipe = Recipe.of_data(manifest.recipe_data) if manifest.recipe_data else None
    run, part = _run(manifest, report) if report is not None else (None, None)
    parts = [
        _front_matter(manifest, recipe, run),
        f"# {_text(manifest.name)}",
        f"A recommender of the recipe `{manifest.recipe}`" + (f": {_text(recipe.summary)}." if recipe else "."),
        _table("Model", _model(manifest, recipe)),
        _table("Data and protocol", _data(manifest)),
        _figures(manifest, run, part),
        _table("Training", _training(manifest)),
        "## Use\n\n```sh\nanyo serve FOLDER\n```\n\nFrom Python: `anyo.load(FOLDER).recommend(…)`.",
        "## Limits\n\n" + "\n".join(f"- {sentence}" for sentence in _limits(manifest)),
        "## Licence\n\n" + _licence(recipe),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(manifest: Manifest, recipe: Recipe | None, run: Mapping[str, Any] | None) -> str:
    """YAML, whose strings are written as JSON."""
    sources = _sources(recipe)
    lines = ["library_name: anyo", "pipeline_tag: other", "license: other", "tags: [recommendation, retrieval, anyo]"]
    lines.append(f"datasets: [{_quoted(manifest.data)}]")
    if sources:
        lines.append(f"base_model: [{', '.join(map(_quoted, sources))}]")
    measured = {name: run[name]["value"] for name in ("recall@10", "ndcg@10", "mrr")} if run else {}
    if measured:
        lines += ["model-index:", f"- name: {_quoted(manifest.name)}", "  results:", "  - task: {type: recommendation}"]
        lines += [f"    dataset: {{name: {_quoted(manifest.data)}, type: {_quoted(manifest.split)}}}", "    metrics:"]
        lines += [f"    - {{type: {_quoted(name)}, value: {value}}}" for name, value in measured.items()]
    return "---\n" + "\n".join(lines) + "\n---"


def _model(manifest: Manifest, recipe: Recipe | None) -> list[tuple[str, str]]:
    rows = [("version", manifest.version), ("schema", str(manifest.schema_version)), ("method", manifest.method.kind)]
    if recipe is not None:
        rows += [("source of the method", recipe.source), ("backbone", recipe.backbone.source)]
        rows += [("title vectors", recipe.items.text_source)] if recipe.items.text_source else []
    return [*rows, ("items", f"{manifest.catalog_size:,}"), ("commit", manifest.commit or "not recorded")]


def _data(manifest: Manifest) -> list[tuple[str, str]]:
    return [
        ("data", manifest.data),
        ("sha256", manifest.data_sha256),
        ("split", manifest.split),
        ("fitted on", manifest.fitted_on),
        ("order of equal times", str(manifest.training.get("ties", "not recorded"))),
        ("ranking", "whole catalog, seen items removed, ties at random"),
    ]


def _figures(manifest: Manifest, run: Mapping[str, Any] | None, part: str | None) -> str:
    if run is None:
        rows = [(name.removeprefix("validation_"), f"{value:.4f}") for name, value in sorted(manifest.metrics.items())]
        about = "On validation, which selected the model; without intervals, and optimistic."
        return _table("Figures", rows, about, ("metric", "value"))
    names = [name for name, value in run.items() if isinstance(value, dict) and {"value", "low", "high"} <= set(value)]
    rows = [(name, f"{run[name]['value']:.4f} [{run[name]['low']:.4f}, {run[name]['high']:.4f}]") for name in names]
    about = f"On {part}, users asked: {run['asked']}; 95 % bootstrap intervals."
    return _table("Figures", rows, about, ("metric", "value"))


def _training(manifest: Manifest) -> list[tuple[str, str]]:
    names = ("seed", "epochs", "best_epoch", "seconds", "stopped_by", "precision", "threads", "torch", "transformers")
    return [(name.replace("_", " "), str(manifest.training[name])) for name in names if name in manifest.training]


def _limits(manifest: Manifest) -> Sequence[str]:
    if manifest.fitted_on == "train":
        return LIMITS
    return (*LIMITS, "It was fitted on validation too: validation figures are those of the model before that refit.")


def _sources(recipe: Recipe | None) -> list[str]:
    """Pretrained backbones that the model was made with."""
    if recipe is None:
        return []
    found = dict.fromkeys([recipe.backbone.source, recipe.items.text_source])
    return [source for source in found if source and source not in NO_WEIGHTS]


def _licence(recipe: Recipe | None) -> str:
    sources = _sources(recipe)
    lines = [
        f"- weights of `{_text(source)}`: {LICENCES.get(source, 'not known here; see where they come from')}"
        for source in sources
    ] or ["- no pretrained weights are in it, or the manifest does not say which"]
    return "\n".join([*lines, "- the training data: its own terms also apply to what was learned from it"])


def _run(manifest: Manifest, report: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The run of this very version, and the part it was asked."""
    same_data = report.get("data", {}).get("sha256") == manifest.data_sha256
    for protocol in report.get("protocols", []) if same_data else []:
        for run in protocol["runs"]:
            if run.get("version") == manifest.version and protocol["split"] == manifest.split:
                return run, report["part"]
    raise ValueError(
        f"the report has no run of version {manifest.version} on data {manifest.data_sha256[:12]}, {manifest.split}"
    )


def _table(title: str, rows: Sequence[tuple[str, str]], about: str = "", head: tuple[str, str] = ("", "")) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |", *(f"| {_text(a)} | {_text(b)} |" for a, b in rows)]
    return "\n\n".join(part for part in (f"## {title}", about, "\n".join(lines)) if part)


def _text(text: str) -> str:
    """Names come from data and folders: nothing in them may be read as markup."""
    return escape(" ".join(text.split()), quote=False).replace("\\", "\\\\").replace("|", "\\|")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
