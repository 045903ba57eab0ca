"""Compares the pinned dependencies with published advisories (`make audit`), by pip-audit.

Exit code 1: a pinned version has a known vulnerability. Where the advisories cannot be asked, nothing has been
checked: that is said plainly, and the exit code is 0 unless `--strict` is given. pip-audit alone would call a
package that its source does not know "skipped" and succeed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PINS = Path(__file__).resolve().parent.parent / "constraints.txt"
PATIENCE_S = 300


def judge(dependencies: list[dict[str, Any]]) -> tuple[bool, list[str]]:
    """Return whether anything was checked, and a line for every vulnerability found."""
    checked = [each for each in dependencies if "skip_reason" not in each]
    found = [
        f"{each['name']} {each['version']}: {flaw['id']} (fixed in {', '.join(flaw['fix_versions']) or 'no version'})"
        for each in checked
        for flaw in each["vulns"]
    ]
    return bool(checked), found


def ask(pins: Path) -> list[dict[str, Any]] | str:
    """Return what pip-audit says of each pinned package, or why it could not say anything."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(pins), "--no-deps", "--disable-pip"]
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


def main() -> int:
    """Run the audit; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--strict", action="store_true", help="fail where the advisories cannot be asked")
    parser.add_argument("--pins", type=Path, default=PINS, help="file with pinned versions")
    options = parser.parse_args()
    answer = ask(options.pins)
    checked, found = (False, []) if isinstance(answer, str) else judge(answer)
    if not checked:
        reason = answer if isinstance(answer, str) else "the source of advisories knows none of the packages"
        print(f"[audit] NOT DONE: the advisories cannot be asked from here ({reason[:200]})")
        return 1 if options.strict else 0
    for line in found:
        print(f"[audit] {line}")
    skipped = sum("skip_reason" in each for each in answer if isinstance(each, dict))
    print(f"[audit] {len(answer)} pinned packages, {len(found)} known vulnerabilities, {skipped} could not be checked")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
