"""Golden histories: what an artifact must answer on every machine as it did where it was trained, ``golden.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from modeling.artifact.folders import ArtifactError
from modeling.artifact.verified import Files, Folder, files_of

GOLDEN = "golden.json"
LARGEST_GOLDEN = 4 << 20  # bytes; about a hundred times what training writes. Reading it holds the interpreter's lock.
GOLDEN_TOLERANCE = 2e-4
"""Largest difference of a golden vector's element: fp32 kernels of other CPUs stay below it, another mask, a missing
adapter or another dtype do not."""
GOLDEN_TITLE_TOLERANCE = 2e-3
"""The same where the history holds free titles: whitening stretches the rounding of the text backbone. Another map or
other tokens are far beyond."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GoldenTitle(_Data):
    """An item of a golden history that is given by its title alone."""

    title: str


GoldenItem = str | GoldenTitle


class _GoldenHistory(_Data):
    history: list[GoldenItem]

    @property
    def ids(self) -> list[str]:
        """The items that are given by their ids."""
        return [item for item in self.history if isinstance(item, str)]

    @property
    def titles(self) -> list[str]:
        """The items that are given by their titles."""
        return [item.title for item in self.history if isinstance(item, GoldenTitle)]

    def asked(self, row_of: Mapping[str, int]) -> list[int | str]:
        """The history as catalog rows and free titles."""
        return [item.title if isinstance(item, GoldenTitle) else row_of[item] for item in self.history]


class GoldenCase(_GoldenHistory):
    """A history, its user vector, and the ids it must be answered with (seen items left out)."""

    vector: list[float]
    top: list[str]


class WrittenCase(_GoldenHistory):
    """A history, the texts that are written for it, best first, and the items it must be answered with."""

    texts: list[str]
    top: list[str]


AnyCase = GoldenCase | WrittenCase
_Case = TypeVar("_Case", GoldenCase, WrittenCase)


def tolerance_of(case: GoldenCase) -> float:
    """Largest allowed absolute difference of an element of a golden vector."""
    return GOLDEN_TITLE_TOLERANCE if case.titles else GOLDEN_TOLERANCE


def read_golden(files: Folder, case: type[_Case]) -> list[_Case]:
    """The golden histories; raises ``ArtifactError``."""
    found = _golden_of(files_of(files))
    if case is GoldenCase and found and isinstance(found[0], dict) and "texts" in found[0]:
        raise ArtifactError(
            f"{GOLDEN} of {files.name} holds lists without vectors, as an earlier version wrote artifacts that count; "
            "train it again (`python -m training train`): that takes seconds"
        )
    return [case.model_validate(each) for each in found]


def _golden_of(files: Files) -> list[object]:
    found = files.json(GOLDEN, LARGEST_GOLDEN)
    if not isinstance(found, list):
        raise ArtifactError(f"{GOLDEN} of {files.name} holds no list of histories")
    return found


def write_golden(folder: Path, cases: Sequence[AnyCase]) -> None:
    """Write the histories that every later load must answer the same."""
    text = json.dumps([case.model_dump() for case in cases], ensure_ascii=False)
    (folder / GOLDEN).write_text(text + "\n", encoding="utf-8")
