"""The version of the project."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def project_version() -> str:
    """Return the version of the installed project, or that of a working copy that is not installed."""
    try:
        return version("anyo")
    except PackageNotFoundError:
        return "0+working-copy"
