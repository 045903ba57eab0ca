"""Writes the software bill of materials of this environment: CycloneDX 1.6 as JSON.

    python -m scripts.sbom [--out dist/anyo.cdx.json]        (make sbom)

Every installed package that anyo or its extras lead to, with version, purl, licence and what it depends on. What only
development, tests or the build need has scope `excluded`; an extra is `optional`.
"""

from __future__ import annotations

import argparse
import importlib.metadata as metadata
import re
import sys
from collections.abc import Collection
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement

from scripts.licences import installed, licence_of, listed, normal
from scripts.setup import ALONE, ROOT

OUT = ROOT / "dist" / "anyo.cdx.json"
ANYO_EXTRAS = ("", "cpu", "docs", "gpu", "minilm", "otel", "s3", "smollm2", "dev")
LOCAL = re.compile(r"\+.*$")  # 2.13.0+cpu: the build is no part of the release that advisories name


def requirements_of(
    distribution: metadata.Distribution, known: Collection[str], extras: Collection[str] = ("",)
) -> list[str]:
    """The installed packages that a package needs here, with some of its extras."""
    asked = [Requirement(line) for line in distribution.requires or ()]
    needed = {
        normal(each.name)
        for each in asked
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras)
    }
    return sorted(needed & set(known))


def component(distribution: metadata.Distribution, groups: list[str]) -> Component:
    """One package."""
    name, version = normal(distribution.name), LOCAL.sub("", distribution.version)
    licence = licence_of(distribution)
    scope = ComponentScope.REQUIRED if "base" in groups else ComponentScope.OPTIONAL
    if not set(groups) - {"dev", "build"}:
        scope = ComponentScope.EXCLUDED
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        scope=scope,
        bom_ref=f"{name}@{version}",
        purl=PackageURL("pypi", None, name, version),
        licenses=[LicenseFactory().make_from_string(licence)] if licence else [],
    )


def make_bom() -> Bom:
    """The bill of materials of what is installed and locked, and of PyTorch."""
    found = installed()
    groups = listed()
    parts = {name: component(found[name], groups[name]) for name in sorted(groups) if name in found}
    bom = Bom()
    root = Component(
        name="anyo",
        version=found["anyo"].version,
        type=ComponentType.APPLICATION,
        bom_ref="anyo",
        licenses=[LicenseFactory().make_from_string("Apache-2.0")],
    )
    bom.metadata.component = root
    for name, part in parts.items():
        bom.components.add(part)
        bom.register_dependency(part, [parts[each] for each in requirements_of(found[name], parts) if each != name])
    needed = {*requirements_of(found["anyo"], parts, ANYO_EXTRAS), *(set(ALONE.values()) & parts.keys())}
    bom.register_dependency(root, [parts[each] for each in sorted(needed)])
    return bom


def main() -> int:
    """Write the bill of materials; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write a CycloneDX bill of materials of this environment.")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    bom = make_bom()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    JsonV1Dot6(bom).output_to_file(str(options.out), allow_overwrite=True, indent=2)
    print(f"[sbom] {len(bom.components)} packages in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
