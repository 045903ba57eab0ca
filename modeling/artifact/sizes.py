"""A manifest's numbers against the sizes of the files beside it, before anything is built from either."""

from __future__ import annotations

from modeling.artifact.folders import ArtifactError
from modeling.artifact.manifest import MANIFEST
from modeling.artifact.verified import Files

NUMBER = 4  # bytes of a weight; files may hold them in half of it
LONGEST_HISTORY = 100_000


def check_catalog_size(files: Files, size: int) -> None:
    """At least one item; raises ``ArtifactError``."""
    if size < 1:
        raise ArtifactError(f"{MANIFEST} of {files.name} has catalog_size {size}")


def check_history(files: Files, limit: int) -> None:
    """The longest history that is read is one that can be read; raises ``ArtifactError``."""
    if not 1 <= limit <= LONGEST_HISTORY:
        raise ArtifactError(
            f"{MANIFEST} of {files.name} has a history limit of {limit}; 1 to {LONGEST_HISTORY} are read"
        )


def check_holds(files: Files, name: str, what: str, least: int) -> None:
    """File ``name`` has the ``least`` bytes that ``what`` takes; raises ``ArtifactError``."""
    if files.size(name) < least:
        raise ArtifactError(
            f"{MANIFEST} of {files.name} has {what}, which takes {least} bytes or more, and {name} holds "
            f"{files.size(name)}"
        )
