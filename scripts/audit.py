"""Compares every pinned package with published advisories (`make audit`), by pip-audit.

Exit codes: 0, all were compared and none has a known vulnerability; 1, one has, or the source of advisories answered
and does not know all of them; 3, the source could not be asked at all, so that nothing was compared. pip-audit alone
would call a package that its source does not know "skipped" and succeed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PINS = [ROOT / "constraints.txt", ROOT / "requirements.lock"]
PATIENCE_S = 300
RIGHT, WRONG, NOT_DONE = 0, 1, 3


def pins(files: list[Path]) -> list[str]:
    """Return ``name==version`` of every package that the files pin, each once, hashes dropped."""
    found: dict[str, str] = {}
    for file in files:
        for line in file.read_text("utf-8").splitlines():
            if match := re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", line):
                found[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[0]
    return sorted(found.values())


def judge(dependencies: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the packages that were not compared, with the reason, and a line for every vulnerability found."""
    skipped = [f"{each['name']}: {each['skip_reason']}" for each in dependencies if "skip_reason" in each]
    found = [
        f"{each['name']} {each['version']}: {flaw['id']} (fixed in {', '.join(flaw['fix_versions']) or 'no version'})"
        for each in dependencies
        for flaw in each.get("vulns", ())
    ]
    return skipped, found


def ask(packages: list[str]) -> list[dict[str, Any]] | str:
    """Return what pip-audit says of each package, or why it could not say anything."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pins.txt"
        file.write_text("\n".join(packages))
        command = [sys.executable, "-m", "pip_audit", "-r", str(file), "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            return f"no answer within {PATIENCE_S} s"
    try:
        dependencies: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return (done.stderr.strip().splitlines() or ["pip-audit printed nothing"])[-1]
    return dependencies


def report(answer: list[dict[str, Any]] | str) -> int:
    """Print what was found; returns the exit code."""
    if isinstance(answer, str):
        print(f"[audit] NOT DONE, nothing was compared: the advisories cannot be asked from here ({answer[:200]})")
        return NOT_DONE
    skipped, found = judge(answer)
    if len(skipped) == len(answer):
        print("[audit] NOT DONE, nothing was compared: the source that answers here knows none of the packages")
        return NOT_DONE
    for line in found:
        print(f"[audit] {line}")
    for line in skipped:
        print(f"[audit] not compared: {line}")
    print(f"[audit] {len(answer)} pinned packages, {len(found)} known vulnerabilities, {len(skipped)} not compared")
    return WRONG if found or skipped else RIGHT


def main() -> int:
    """Run the audit; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pins", type=Path, action="append", help="file with pinned versions; repeatable")
    options = parser.parse_args()
    packages = pins(options.pins or PINS)
    if not packages:
        print(f"[audit] NOT DONE, nothing was compared: no package is pinned in {options.pins}")
        return NOT_DONE
    return report(ask(packages))


if __name__ == "__main__":
    sys.exit(main())
