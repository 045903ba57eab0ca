"""`make run` takes its settings as they are meant. scripts/setup.py: a machine without a GPU never gets CUDA packages;
pip's own plan decides how."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
CUDA = [
    "filelock",
    'nvidia-cudnn-cu13==9.20.0.48; platform_system == "Linux"',
    "cuda-bindings<14",
    "triton==3.7.1",
]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", 'train "anyo" --data "demo" --backbone "tiny" --out "artifacts/anyo-demo-tiny"'),
        ("DATA=", 'train "anyo" --data "demo" --backbone "tiny" --out "artifacts/anyo-demo-tiny"'),
        ("DATA=x", 'choose --data "x" --time-budget "30" --out "artifacts/auto-x"'),
        ("DATA=x BACKBONE= MINUTES=2", 'choose --data "x" --time-budget "2" --out "artifacts/auto-x"'),
        ("DATA=x BACKBONE=minilm", 'train "anyo" --data "x" --backbone "minilm" --out "artifacts/anyo-x-minilm"'),
        ("DATA=x RECIPE=sasrec MINUTES=2", 'train "sasrec" --data "x" --time-budget "2" --out "artifacts/sasrec-x"'),
        ("RECIPE=auto BACKBONE=minilm", "RECIPE=auto chooses the backbone too: leave out BACKBONE=minilm"),
    ],
)
@pytest.mark.parametrize("place", ["argument", "environment"])
def test_make_run_takes_its_settings_from_arguments_and_the_environment(given: str, words: str, place: str) -> None:
    settings = dict(word.split("=") for word in given.split())
    unset = ("DATA", "RECIPE", "BACKBONE", "MINUTES", "ARTIFACT", "TRAIN_ARGS", "MAKEFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    arguments = given.split() if place == "argument" else []
    done = subprocess.run(
        ["make", "-n", "run", *arguments],
        cwd=ROOT,
        env=environment | (settings if place == "environment" else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert words in " ".join((done.stdout + done.stderr).replace("\\\n", " ").split())
    assert (done.returncode != 0) == ("chooses the backbone too" in words)


@pytest.fixture
def setup_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("anyo_setup", ROOT / "scripts" / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.VENV_PYTHON = Path(sys.executable)
    return module


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only source of packages."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path


def write_torch_wheel(folder: Path, version: str, requires: list[str]) -> None:
    """Write a wheel called torch that holds nothing but its metadata."""
    info = f"torch-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.linux  # only its wheels bring CUDA along
def test_pips_plan_shows_the_cuda_packages(setup_script: ModuleType, wheels: Path) -> None:
    write_torch_wheel(wheels, "2.13.0", CUDA)
    assert setup_script.cuda_packages(setup_script.plan("torch==2.13.0")) == CUDA[1:]


def test_a_cpu_wheel_that_pip_can_see_wins_and_is_clean(setup_script: ModuleType, wheels: Path) -> None:
    write_torch_wheel(wheels, "2.13.0", CUDA)
    write_torch_wheel(wheels, "2.13.0+cpu", ["filelock"])
    report = setup_script.plan("torch==2.13.0")
    assert report["install"][0]["metadata"]["version"] == "2.13.0+cpu"
    assert setup_script.cuda_packages(report) == []


@pytest.mark.parametrize(("cuda_in_plan", "tool"), [(CUDA, "--torch-backend cpu"), (["filelock"], "-m pip")])
def test_without_a_gpu_the_cpu_build_is_installed(
    cuda_in_plan: list[str], tool: str, setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[str] = []
    report = {"install": [{"metadata": {"requires_dist": cuda_in_plan}}]}
    monkeypatch.setattr(setup_script, "run", lambda *command, what: commands.append(" ".join(map(str, command))))
    monkeypatch.setattr(setup_script, "plan", lambda requirement: report)
    monkeypatch.setattr(setup_script, "installed_version", lambda package: None)
    monkeypatch.setattr(setup_script, "installed_cuda", list)
    setup_script.install_torch("cpu", "no NVIDIA GPU found")
    installing_torch = [command for command in commands if setup_script.pinned("torch") in command]
    assert len(installing_torch) == 1
    assert tool in installing_torch[0]


def test_cuda_packages_that_slipped_in_are_refused(setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_script, "installed_version", lambda package: "2.13.0")
    monkeypatch.setattr(setup_script, "installed_cuda", lambda: ["nvidia-cudnn-cu13"])
    with pytest.raises(setup_script.SetupError, match="nvidia-cudnn-cu13"):
        setup_script.install_torch("cpu", "no NVIDIA GPU found")


def test_the_build_follows_the_gpu_and_the_wish(
    setup_script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\n")
    tool.chmod(0o755)
    assert setup_script.choose_build("auto") == ("gpu", "found NVIDIA H200")
    assert setup_script.choose_build("cpu")[0] == "cpu"
    tool.write_text("#!/bin/sh\necho 'no devices were found'; exit 6\n")  # a driver without a device
    assert setup_script.choose_build("auto")[0] == "cpu"
