"""Makes an environment in `.peers/` for every other serving framework that `benchmarks.serving.compare` compares with.

Each holds the pinned packages of `benchmarks/serving/peers/NAME.txt` and nothing of ours. PyTorch is the CPU build,
fetched as `scripts/setup.py` fetches it. An environment that is there already, made of the same file, is left alone.
Run it with the Python of `.venv`, which `make peers` does.

    python -m scripts.peers [NAME...]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from pathlib import Path

from scripts.setup import VENV, SetupError, cuda_packages, pinned, pip_install, plan, run

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "benchmarks" / "serving" / "peers"
ENVIRONMENTS = Path(os.environ.get("PEERS", ROOT / ".peers"))
SHARED = "common"
STAMP = "made-of"


def names() -> list[str]:
    """Return the peers that have a list of packages."""
    return sorted(file.stem for file in FILES.glob("*.txt") if file.stem != SHARED)


def fingerprint(name: str) -> str:
    """Return a hash of what decides the content of an environment."""
    lists = [(FILES / f"{each}.txt").read_bytes() for each in (SHARED, name)]  # too often rather than too rarely
    return hashlib.sha256(b"\0".join([sys.version.encode(), *lists])).hexdigest()


def installer(python: Path) -> list[str | Path]:
    """Return the command that installs packages beside `python` without CUDA: pip, or uv where pip would bring that."""
    if not cuda_packages(plan(pinned("torch"))):
        return [python, "-m", "pip", "install", "--quiet"]
    pip_install("--quiet", pinned("uv"), what="installing uv")
    return [VENV / "bin" / "uv", "pip", "install", "--python", python, "--torch-backend", "cpu"]


def make(name: str) -> None:
    """Make the environment of one peer, unless it is there."""
    folder = ENVIRONMENTS / name
    stamp = folder / STAMP
    if stamp.exists() and stamp.read_text() == fingerprint(name):
        print(f"[peers] {name} is there", flush=True)
        return
    if folder.is_symlink() or (folder.exists() and not (folder / "pyvenv.cfg").is_file() and any(folder.iterdir())):
        raise SetupError(f"{folder} is there and is no environment of Python; move it away, or name another PEERS")
    print(f"[peers] making {name}", flush=True)
    run(sys.executable, "-m", "venv", "--clear", folder, what=f"making an environment for {name}")
    python = folder / "bin" / "python"
    run(*installer(python), "--requirement", FILES / f"{name}.txt", what=f"installing {name}")
    stamp.write_text(fingerprint(name))


def main() -> None:
    """Make those that are asked for, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}; none: all")
    for name in parser.parse_args().names or names():
        if name not in names():
            parser.error(f"{name!r} is no peer; known are {', '.join(names())}")
        make(name)


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        print(f"[peers] {error}", file=sys.stderr)
        sys.exit(1)
