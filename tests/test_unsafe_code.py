"""What never appears in the source: calls that run code out of a file, and files written or read past their checks.

Each rule is a function from source text to violations, so that it is also shown to catch what it forbids.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from testing.source_graph import ROOT

PACKAGES = ("index", "modeling", "service", "training")
SAVES_ARRAYS = {"torch.save", "np.save", "np.savez", "np.savez_compressed", "safetensors.torch.save_file"}
WRITES_TENSORS = ROOT / "modeling" / "artifact" / "tensor_files.py"
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_calls_what_runs_code_of_a_file(path: Path) -> None:
    assert call_violations(path.read_text()) == []


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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrays_are_written_in_one_place(path: Path) -> None:
    # The streamed build of an index keeps work files of its own, in no artifact.
    work = path == ROOT / "index" / "ivf" / "streamed.py"
    assert save_violations(path.read_text()) == [] or path == WRITES_TENSORS or work


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
    # tensor_files.py compares a file with what it has just written, and ivf/on_disk.py reads vectors that an index is
    # built from; nothing is served from these mappings.
    [
        path
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] != "training"
        and path.name not in ("cli.py", "tensor_files.py", "on_disk.py")
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
