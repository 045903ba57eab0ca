"""A page for every recipe, their index, and the reference of settings, from the recipes and the classes of settings."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from scripts.pages.commands import cell
from scripts.pages.results import ROOT
from training.effects import ALWAYS, EFFECTS
from training.methods.base_prompted import PromptedSettings
from training.methods.llara import LlaraSettings
from training.recipe import MethodSettings, Recipe, method_names, training_method
from training.recipes import get_recipe, recipe_names

FOLDER = ROOT / "docs" / "recipes"
SETTINGS = ROOT / "docs" / "reference" / "recipe-settings.md"
MADE = "This page is generated from the code by `python -m scripts.pages`."
NOT_SET = ("name", "summary", "source", "index", "method")
INTRODUCTION = f"""\
# Recipe pages

Each recipe with its source, its differences from the paper and its settings. [Recipes](../training/recipes.md)
compares them, [Choosing](../getting-started/choosing.md) helps to take one, [Quality](../benchmarks/quality.md) has
measured figures. {MADE}

| recipe | kind of method | summary | builds on |
| --- | --- | --- | --- |
"""
SETTINGS_HEADER = f"""\
# Recipe settings

`--set section.field=value` changes a setting of a recipe. Defaults here are those of the section; a recipe may have
others ([recipe pages](../recipes/index.md)). A setting that the recipe does not read is refused. {MADE}
"""


def recipe_pages() -> dict[Path, str]:
    """Pages by path: one a recipe, their index, and the reference of settings."""
    recipes = [get_recipe(name) for name in recipe_names()]
    pages = {FOLDER / f"{recipe.name}.md": _page(recipe) for recipe in recipes}
    rows = "".join(
        f"| [`{each.name}`]({each.name}.md) | `{each.method.kind}` | {cell(each.summary)} | "
        f"{f'`{each.requires}`' if each.requires else ''} |\n"
        for each in recipes
    )
    return {**pages, FOLDER / "index.md": INTRODUCTION + rows, SETTINGS: _settings()}


def _page(recipe: Recipe) -> str:
    module = importlib.import_module(f"training.recipes.{recipe.name}")
    shape = "a user vector, searched in an index" if recipe.method.encodes else "a ranked list, generated"
    if not recipe.method.learns:
        shape = "scores counted from the interactions, searched in a table; no network is trained"
    elif isinstance(recipe.method, PromptedSettings):
        shape = "scores of given candidates, and a ranked list of candidates that it finds"
    elif isinstance(recipe.method, LlaraSettings):
        shape = "a ranked list, generated, and scores of given candidates"
    base = f"an artifact of `{recipe.requires}`, given with `--id-model`" if recipe.requires else "no other artifact"
    if recipe.method.needs_teacher:
        base = "lists of another artifact (`python -m training teacher`), given with `--teacher`"
    text = [
        f"# {recipe.name}\n",
        f"{_paragraphs(module.__doc__ or '')}\n",
        f"{_paragraphs(inspect.getdoc(module.recipe) or '')}\n",
        f"- Source: {recipe.source}",
        f"- Method: `{recipe.method.kind}` (`training/methods/{recipe.method.kind}.py`); it gives {shape}",
        f"- Builds on: {base}",
        f"- Defined in `training/recipes/{recipe.name}.py`\n",
        "## Settings\n",
        "Values of the recipe with its usual backbone. Settings that it does not read are left out.\n",
        "| setting | value | default of the section |",
        "| --- | --- | --- |",
        *(
            f"| `{path}` | {_value(value)} | {'' if value == usual else _value(usual)} |"
            for path, value, usual in _read(recipe)
        ),
        "",
        f"[Recipe settings](../reference/recipe-settings.md) says what each means. {MADE}",
    ]
    return "\n".join(text) + "\n"


def _read(recipe: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """Path, value and default of every setting that acts."""
    for slot in Recipe.model_fields:
        section = getattr(recipe, slot)
        if slot in NOT_SET or not isinstance(section, BaseModel):
            continue
        for name, inner in type(section).model_fields.items():
            path = f"{slot}.{name}"
            if recipe.method.learns and (path not in EFFECTS or EFFECTS[path].acts(recipe)):
                yield path, getattr(section, name), _default(inner)
    effects = type(recipe.method).effects()
    for path, value, usual in _flat(recipe.method, "method"):
        inside = path.removeprefix("method.")
        if inside != "kind" and (inside not in effects or effects[inside].acts(recipe)):
            yield path, value, usual


def _flat(section: BaseModel, path: str) -> Iterator[tuple[str, Any, Any]]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _flat(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}", value, _default(field)


def _settings() -> str:
    text = [SETTINGS_HEADER]
    for slot, field in Recipe.model_fields.items():
        if slot not in NOT_SET and inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            text += _table(slot, field.annotation, slot)
    shared = set(MethodSettings.model_fields)
    for kind in method_names():
        settings = training_method(kind).Settings
        if any(name not in shared for name in settings.model_fields):
            text += _table(f"method of kind {kind}", settings, "method")
    return "\n".join(text) + "\n"


def _table(title: str, section: type[BaseModel], path: str) -> list[str]:
    rows = list(_rows(section, path))
    about = _paragraphs(inspect.getdoc(section) or "").split("\n\n")[0]
    return [
        f"## {title}\n",
        f"{about}\n",
        "| setting | type | default | meaning |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
    ]


def _rows(section: type[BaseModel], path: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if path == "method" and name == "kind":
            continue
        inner = _section_of(field.annotation)
        if inner is not None:
            yield from _rows(inner, f"{path}.{name}")
            continue
        effect = EFFECTS.get(f"{path}.{name}", ALWAYS)
        read = "" if effect is ALWAYS else f"read with {effect.where}"
        meaning = cell("; ".join(filter(None, (field.description, read))))
        yield f"| `{path}.{name}` | {cell(_type(field))} | {_value(_default(field))} | {meaning} |"


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, also where it may be none."""
    for each in (annotation, *typing.get_args(annotation)):
        if inspect.isclass(each) and issubclass(each, BaseModel):
            return each
    return None


def _type(field: FieldInfo) -> str:
    choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
    if choices:
        return ", ".join(f"`{each}`" for each in choices)
    text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", str(field.annotation).replace("typing.", ""))
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    bounds = " ".join(
        f"{sign} {getattr(each, key):g}"
        for each in field.metadata
        for key, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if getattr(each, key, None) is not None
    )
    return f"{text} {bounds}".strip()


def _default(field: FieldInfo) -> Any:
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return f"`{value}`" if value else '`""`'
    if isinstance(value, BaseModel):
        return cell(f"`{json.dumps(value.model_dump(mode='json'))}`")
    return f"`{json.dumps(value)}`" if value is not None else "`null`"


def _paragraphs(text: str) -> str:
    """A docstring as Markdown: paragraphs in one line each."""
    return "\n\n".join(cell(part) for part in inspect.cleandoc(text).split("\n\n"))
