"""The walls of the house: who may import whom, on which floor a room stands, and how large files and folders may be.

Each rule is a function from source text to violations, so that it is also shown to catch what it forbids. Exceptions
are tables with their reasons; one that is no longer needed fails, so that it is struck out.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from testing.source_graph import (
    ROOT,
    between_rooms,
    circles,
    dotted,
    floor_violations,
    import_graph,
    imports,
    late_imports,
)

OURS = {"service", "training", "modeling", "index"}
MAY_IMPORT = {
    "service": {"service", "modeling", "index"},
    "training": {"training", "modeling", "index"},
    "modeling": {"modeling", "index"},
    "index": {"index"},
}
ONLY_SERVICE = {"fastapi", "starlette", "uvicorn", "uvloop", "httptools", "prometheus_client", "redis", "hiredis"}
NOT_IN_INDEX = {"torch", "transformers", "peft", "accelerate", "tokenizers"}
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CORE_OF_SERVICE = {
    "service." + name
    for name in (
        "service",
        "bulk",
        "experiments",
        "lifecycle",
        "recommend",
        "items",
        "caches",
        "artifacts",
        "engine",
        "item_stores",
        "stores",
        "redis_client",
        "concurrency",
        "observability",
        "keys",
        "errors",
        "settings",
    )
}
HTTP_LIBRARIES = {"fastapi", "starlette", "uvicorn", "httptools"}

# From top to bottom. A room imports rooms on lower floors only; "" is the package itself.
FLOORS: dict[str, tuple[frozenset[str], ...]] = {
    package: tuple(frozenset(floor.split()) or frozenset({""}) for floor in floors)
    for package, floors in {
        "service": (
            "__main__", "cli admin_cli local_cli ray_serve", "bulk_cli", "doctor http bulk", "service", "experiments",
            "lifecycle", "recommend", "items caches", "artifacts engine item_stores", "stores", "redis_client",
            "concurrency", "observability", "keys",
            "context version errors settings early", "",
        ),
        "training": (
            "__main__", "cli", "commands", "choosing comparison publishing tuning", "compare cli_data rewrite",
            "run run_logs cli_common", "tiny recipes", "methods", "checks export", "item_ids adaptation semantic",
            "updating loop", "search_space", "recipe", "effects older_recipes",
            "objectives evaluation provenance served_index",
            "data", "",
        ),
        "modeling": (
            "methods", "generation", "inference", "encoder", "backbone", "artifact",
            "spec", "text text_template cores torch_private transformers_private", "",
        ),
        "index": (
             "__main__", "cli", "", "building", "build storage live_index live_catalog sharded qdrant", "spec",
             "kinds catalog trie tables",
             "ivf", "approximate faiss_calls filters", "base text", "command_line unavailable",
        ),
    }.items()
}  # fmt: skip

UPWARD_IMPORTS = {
    ("modeling.artifact.manifest", "modeling.inference.int8_linear"): "until the manifest leaves precision to a method",
}
"""Imports (importer, imported) that go up, with the reason; left out of the search for circles of rooms."""

FILE_CIRCLES: dict[tuple[str, ...], str] = {}

LATE_IMPORTS = {
    "index.cli": (20, "the command line answers before numpy and faiss are read"),
    "modeling.backbone.adapters.lora": (2, "peft takes seconds, and models without an adapter need none"),
    "modeling.backbone.data_text": (1, "only where titles are encoded"),
    "modeling.backbone.gguf_folder": (2, "transformers takes seconds, and most backbones are no GGUF file"),
    "modeling.backbone.loading": (2, "transformers takes seconds, and models over ids need none"),
    "modeling.backbone.with_head": (1, "transformers takes seconds, and most runs need no head"),
    "modeling.backbone.pretrained": (3, "transformers takes seconds, and models over ids need none"),
    "modeling.methods.base_generative": (1, "transformers takes seconds, and models over ids need none"),
    "modeling.methods.p5_files": (1, "only where P5 is loaded"),
    "service.admin_cli": (3, "the command line answers before libraries are read"),
    "service.artifacts.trial": (2, "a process of its own, which first limits itself"),
    "service.bulk_cli": (14, "the command line answers before libraries are read"),
    "service.caches": (1, "redis-py is read only where it is used"),
    "service.cli": (9, "libraries are read after the variables that they look at are set"),
    "service.local_cli": (4, "the command line answers before libraries are read"),
    "service.engine.cpu": (1, "torch is read after the variables that it looks at are set"),
    "service.http.server": (1, "uvloop is not there on every system"),
    "service.observability.tracing": (6, "the extra otel may be missing"),
    "service.service": (1, "the extra qdrant may be missing"),
    "service.ray_serve.__main__": (10, "the command line answers before libraries are read; Ray may be missing"),
    "training.cli": (11, "the command line answers before torch is read"),
    "training.cli_common": (6, "the command line answers before torch is read"),
    "training.commands.choose": (4, "the command line answers before torch is read"),
    "training.commands.compare": (13, "the command line answers before torch is read"),
    "training.cli_data": (19, "the command line answers before polars is read"),
    "training.commands.publish": (3, "the command line answers before libraries are read"),
    "training.commands.update": (4, "the command line answers before torch is read"),
    "training.commands.tune": (6, "the command line answers before torch is read"),
    "training.data.checking.check": (1, "only where a tokenizer is asked"),
    "training.evaluation.table": (1, "for a type alone"),
    "training.item_ids.assign": (3, "transformers takes seconds, and other ids need none"),
    "training.methods.p5_examples": (2, "only where P5 makes its tokenizer"),
    "training.methods.tallrec": (1, "for a type alone"),
    "training.run": (5, "the environment is recorded, and evaluation is needed at the end"),
    "training.run_logs.mlflow_log": (1, "MLflow is an extra, and may be missing"),
    "training.run_logs.wandb_log": (1, "Weights & Biases may be missing"),
    "training.tuning.search": (4, "Optuna is an extra, and may be missing"),
    "training.tiny": (1, "only where a tiny model is made"),
}
"""Module → most lines that import inside a function, and why there."""

FILES_IN_A_FOLDER, FOLDERS_INSIDE_A_PACKAGE, LINES_IN_A_FILE = 15, 2, 400
LINES_IN_A_FUNCTION, LONG_FUNCTIONS = 40, 3
LONG_FILES = {
    "tests/training/methods/test_p5.py": "until one suite tests all methods",
    "tests/training/methods/test_grounding.py": "until one suite tests all methods",
    "tests/service/http/test_api.py": "one test a rule of the API",
}
MUST_NOT_IMPORT = {"tests": {"benchmarks"}, "benchmarks": {"tests"}, "testing": {"tests", "benchmarks"}}
TESTS_OF_BENCHMARKS = {
    "tests/benchmarks/": "what they test",
    "tests/test_pages.py": "the plots of the pages",
}

CROWDED_FOLDERS: dict[str, str] = {
    "modeling/methods": "one module a method",
    "training/methods": "one module a method",
    "training/recipes": "one module a recipe",
}

SOURCES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))
TEXT = {dotted(path): path.read_text() for path in SOURCES}
HELPERS = [path for folder in ("tests", "testing", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")]


def import_violations(package: str, source: str, module: str = "", is_package: bool = False) -> list[str]:
    """Say which imports of a file in `package` cross a wall."""
    found = []
    for line, name in imports(source, module or package, is_package):
        top = name.split(".")[0]
        if top in OURS and top not in MAY_IMPORT[package]:
            found.append(f"line {line}: {package} must not import {name}")
        if top in ONLY_SERVICE and package != "service":
            found.append(f"line {line}: only service knows HTTP and Redis, but {package} imports {name}")
        if package == "index" and (top in NOT_IN_INDEX or name.endswith(".torch")):
            found.append(f"line {line}: index is numpy, faiss and polars, but imports {name}")
        if top in UNSAFE_MODULES:
            found.append(f"line {line}: {name} can run code that a file brings along")
    return found


def test_the_four_packages_have_sources() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == OURS


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_crosses_a_wall(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert import_violations(package, path.read_text(), dotted(path), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("service", "import training"),
        ("training", "def f():\n    from service.engine.batcher import Entry"),
        ("modeling", "import training.data as data"),
        ("index", "import modeling.text"),
        ("index", "from modeling.methods.dense import load_artifact"),
        ("index", "import importlib\nimportlib.import_module('modeling.methods.dense')"),
        ("training", "from fastapi import FastAPI"),
        ("index", "import redis.asyncio"),
        ("index", "import torch.nn.functional as F"),
        ("index", "from safetensors.torch import load_file"),
        ("service", "import pickle"),
    ],
)
def test_a_forbidden_import_is_seen(package: str, source: str) -> None:
    assert len(import_violations(package, source)) == 1


def test_relative_imports_are_resolved() -> None:
    assert list(imports("from ..data import x", "training.recipes.anyo")) == [(1, "training.data")]
    assert list(imports("from .data import x", "training", is_package=True)) == [(1, "training.data")]
    assert import_violations("training", "from ...service import x", "training.recipes.anyo") == [
        "line 1: training must not import service"
    ]


def test_the_core_of_the_service_knows_no_http() -> None:
    for module, source in TEXT.items():
        if module in CORE_OF_SERVICE or module.rpartition(".")[0] in CORE_OF_SERVICE:
            used = {name.split(".")[0] for _, name in imports(source, module)}
            assert not used & HTTP_LIBRARIES, module


@pytest.mark.parametrize("package", sorted(OURS))
def test_imports_go_down_from_floor_to_floor(package: str) -> None:
    own = {module: source for module, source in TEXT.items() if module.split(".")[0] == package}
    rooms = {room.removeprefix(package).removeprefix(".") for room in between_rooms(import_graph(own))}
    placed = [name for floor in FLOORS[package] for name in floor]
    assert sorted(rooms) == sorted(placed), "every room stands on one floor: change FLOORS"
    upward = set(floor_violations(import_graph(own), FLOORS[package], package))
    known = {pair for pair in UPWARD_IMPORTS if pair[0].split(".")[0] == package}
    assert upward - known == set(), "imports go to lower floors only"
    assert known - upward == set(), "no longer needed: strike it out of UPWARD_IMPORTS"


def test_no_circle_of_files_and_none_of_rooms() -> None:
    graph = import_graph(TEXT)
    assert {tuple(circle) for circle in circles(graph)} == set(FILE_CIRCLES)
    downward = {
        module: {other for other in imported if (module, other) not in UPWARD_IMPORTS}
        for module, imported in graph.items()
    }
    assert circles(between_rooms(downward)) == []


def test_a_circle_is_seen_however_it_is_hidden() -> None:
    hidden = {
        "p.a.x": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.b.y import Y",
        "p.b.y": "def f():\n    from p.b import z",
        "p.b.z": "import p.a.w",
        "p.a.w": "",
    }
    graph = import_graph(hidden)
    assert circles(graph) == [], "no file is in a circle"
    assert circles(between_rooms(graph)) == [["p.a", "p.b"]]
    assert circles(import_graph({**hidden, "p.a.w": "from p.a.x import X"})) == [["p.a.w", "p.a.x", "p.b.y", "p.b.z"]]
    floors = (frozenset({"a"}), frozenset({"b"}))
    assert floor_violations(graph, floors, "p") == [("p.b.z", "p.a.w")]


def test_late_imports_are_listed() -> None:
    late = Counter({module: len(late_imports(source)) for module, source in TEXT.items()})
    late += Counter()  # drops those without any
    assert {module: count for module, count in late.items() if count > LATE_IMPORTS.get(module, (0, ""))[0]} == {}
    assert set(LATE_IMPORTS) - set(late) == set(), "no longer needed: strike it out of LATE_IMPORTS"
    assert late_imports("import a\ndef f():\n    import b\n    def g():\n        from c import d") == [3, 5]


def test_folders_stay_shallow_and_small() -> None:
    deep = [path for path in SOURCES if len(path.relative_to(ROOT).parts) - 2 > FOLDERS_INSIDE_A_PACKAGE]
    assert deep == []
    files = Counter(path.parent for path in [*SOURCES, *HELPERS] if path.name != "__init__.py")
    crowded = {str(folder.relative_to(ROOT)) for folder, count in files.items() if count > FILES_IN_A_FOLDER}
    assert crowded == set(CROWDED_FOLDERS)


def test_files_stay_short() -> None:
    long = {
        str(path.relative_to(ROOT))
        for path in [*SOURCES, *HELPERS]
        if len(path.read_text().splitlines()) > LINES_IN_A_FILE
    }
    assert long == set(LONG_FILES)


def long_functions(source: str) -> list[str]:
    """Return the functions whose body, its docstring not counted, has more lines than are allowed."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body and body[-1].end_lineno - body[0].lineno + 1 > LINES_IN_A_FUNCTION:  # type: ignore[operator]
                found.append(node.name)
    return found


def test_functions_stay_short() -> None:
    long = [f"{module}.{name}" for module, source in TEXT.items() for name in long_functions(source)]
    assert len(long) <= LONG_FUNCTIONS, long
    lines = "\n".join(["    pass"] * LINES_IN_A_FUNCTION)
    assert long_functions(f'def f():\n    """Doc."""\n{lines}\ndef g():\n{lines}\n    pass') == ["g"]


@pytest.mark.parametrize("path", HELPERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_and_benchmarks_share_only_what_is_in_testing(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    used = {imported.split(".")[0] for _, imported in imports(path.read_text(), dotted(path))}
    of_benchmarks = any(name.startswith(place) for place in TESTS_OF_BENCHMARKS)
    assert not used & (set() if of_benchmarks else MUST_NOT_IMPORT.get(name.split("/")[0], set()))
