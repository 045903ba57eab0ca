"""Writes docs/reference/licences.md: the licence that each package of requirements.lock declares, and what needs it.

    python -m scripts.licences        (make licences)

Read from what is installed, so it runs in a complete environment (`make setup`). PyTorch, which the lock leaves out,
has its row too.
"""

from __future__ import annotations

import importlib.metadata as metadata
import re
import sys

from scripts.setup import LOCK, ROOT, locked_groups

PAGE = ROOT / "docs" / "reference" / "licences.md"
HEADER = """\
# Licences of dependencies

anyo itself: Apache-2.0 (`LICENSE` in the repository). The table lists the licence that each package of
`requirements.lock` declares in its metadata, and the extras that need the package: `base` always, `dev` for development
and tests, `build` for the editable installation of anyo. Made by `make licences`; `make sbom` writes the same
with versions as CycloneDX. Not in the list: the CUDA packages of the GPU build, and the npm packages with which one
test draws dashboards (`tests/deploy/panels/package-lock.json` names the licence of each). Data sets and pretrained
backbones have licences of their own.

| package | licence | for |
| --- | --- | --- |
"""
LONGEST = 60  # a longer entry is the text of a licence, not its name


def normal(name: str) -> str:
    """A package's name as package indexes compare them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, metadata.Distribution]:
    """Every distribution of this environment by its name."""
    return {normal(each.name): each for each in metadata.distributions()}


def licence_of(distribution: metadata.Distribution) -> str | None:
    """A package's statement of its licence: the expression, the short text, or the classifiers; None: nothing."""
    fields = distribution.metadata.json
    for field in ("license_expression", "license"):
        text = " ".join(str(fields.get(field, "")).split())
        if text and (field == "license_expression" or len(text) <= LONGEST):
            return text
    classifiers = [each for each in fields.get("classifier", ()) if each.startswith("License :: ")]
    named = " or ".join(each.rpartition(" :: ")[2] for each in classifiers)
    return named or None


def listed() -> dict[str, list[str]]:
    """Packages of the page and the bill of materials, with their purpose: the lock, without the tool that fetches
    PyTorch and is not always there, and PyTorch."""
    locked = {normal(name): groups for name, groups in locked_groups(LOCK.read_text()).items() if groups != ["torch"]}
    return {**locked, "torch": ["base"]}


def rows(found: dict[str, metadata.Distribution]) -> dict[str, str]:
    """A line of the table by package, for what is locked and installed, and PyTorch."""
    groups = listed()
    return {
        name: f"| {name} | {licence_of(found[name]) or '(none declared)'} | {', '.join(groups[name])} |"
        for name in sorted(groups)
        if name in found
    }


def main() -> int:
    """Write the page; returns the exit code."""
    lines = rows(installed())
    missing = listed().keys() - lines.keys()
    if missing:
        print(f"[licences] not installed, so not known: {', '.join(sorted(missing))}; run make setup", file=sys.stderr)
        return 1
    PAGE.write_text(HEADER + "\n".join(lines.values()) + "\n", "utf-8")
    print(f"[licences] {len(lines)} packages in {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
