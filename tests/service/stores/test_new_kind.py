"""A new kind of store is two new files, one with its URL and settings and one with the store; nothing else changes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

KIND = """
from pydantic import Field

from service.settings.base import Section

SCHEMES = ("shelf",)
KNOWN = "shelf://NAME"


class ShelfSettings(Section):
    shelf_boards: int = Field(default=3, ge=1)


SECTION = ShelfSettings


def parse(url, what, known):
    return url.removeprefix("shelf://")
"""
STORE = """
from service.settings.store_kinds.shelf import ShelfSettings


class Shelf:
    def __init__(self, name, boards):
        self.name, self.boards = name, boards


def open_url(place, settings, metrics):
    return Shelf(place, settings.section(ShelfSettings).shelf_boards)
"""
ASK = """
from service.observability.metrics import Metrics
from service.settings import load_settings
from service.settings.store_kinds import shown
from service.stores import open_store

settings = load_settings(store="shelf://oak", shelf_boards=5)
store = open_store(settings.store, settings, Metrics())
print(type(store).__name__, store.name, store.boards, shown("shelf://oak"))
"""


def test_a_new_kind_of_store_is_two_files(tmp_path: Path, repository: Path) -> None:
    package = shutil.copytree(
        repository / "service", tmp_path / "service", ignore=shutil.ignore_patterns("__pycache__", "page")
    )
    (package / "settings" / "store_kinds" / "shelf.py").write_text(KIND)
    (package / "stores" / "shelf.py").write_text(STORE)
    done = subprocess.run(
        [sys.executable, "-c", ASK], cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}:{repository}"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == ["Shelf", "oak", "5", "oak"], done.stderr
