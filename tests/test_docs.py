"""Pages of docs/: navigation, length, paths that are named, and the index of decision records."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "README.md", ROOT / "README.ja.md"]
RECORDS = sorted((DOCS / "decisions").glob("[0-9]*.md"))
FOLDERS = "index|modeling|training|service|testing|benchmarks|scripts|tests|deploy"
NAMED_PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]*[\w/])`")
LONGEST = 300
LISTS = {"docs/reference/command-line.md", "docs/reference/recipe-settings.md"}
"""Pages made from the code in which a reader looks one entry up; they grow with it."""


def name_of(page: Path) -> str:
    """A page's path inside the repository."""
    return page.relative_to(ROOT).as_posix()


def test_every_page_is_in_the_navigation() -> None:
    nav = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = [page.relative_to(DOCS).as_posix() for page in PAGES if not page.name.endswith(".ja.md")]
    indexed = {f"decisions/{record.name}" for record in RECORDS}  # their index pages list them
    indexed |= {page for page in pages if page.startswith("recipes/") and page != "recipes/index.md"}
    assert [page for page in pages if page not in indexed and f"'{page}'" not in nav] == []


def test_a_japanese_page_translates_an_english_one() -> None:
    translated = [page for page in PAGES if page.name.endswith(".ja.md")]
    assert translated
    assert [page for page in translated if not page.with_name(page.name.replace(".ja.md", ".md")).exists()] == []


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_a_page_is_short_and_names_paths_that_exist(page: Path) -> None:
    text = page.read_text()
    assert len(text.splitlines()) <= LONGEST or name_of(page) in LISTS
    paths = {path for path in NAMED_PATH.findall(text) if not re.search(r"\b[A-Z]{2,}\b", path)}
    assert {path for path in paths if not (ROOT / path).exists() and not path.startswith("deploy/secrets")} == set()


def heading_and_status(record: Path) -> tuple[str, str, str, str]:
    """Number, title, status (links reduced to numbers) and date of a record."""
    text = record.read_text()
    number, title = re.match(r"# (\d{4}): (.+)", text).groups()  # type: ignore[union-attr]
    status = re.search(r"^- Status: (.+)$", text, flags=re.MULTILINE)[1]  # type: ignore[index]
    date = re.search(r"^- Date: (\d{4}-\d\d-\d\d)$", text, flags=re.MULTILINE)[1]  # type: ignore[index]
    assert re.findall(r"^## (\w+)", text, flags=re.MULTILINE) == ["Context", "Decision", "Consequences"], record
    return f"[{number}]({record.name})", title, re.sub(r"\[(\d+)\]\([^)]*\)", r"\1", status), date


def test_the_index_of_decisions_agrees_with_the_records() -> None:
    lines = (DOCS / "decisions" / "index.md").read_text().splitlines()
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines if line.startswith("| [")]
    assert rows == [heading_and_status(record) for record in RECORDS]
    assert len({record.name[:4] for record in RECORDS}) == len(RECORDS), "one number a record"


def test_a_superseded_record_and_the_one_that_replaces_it_name_each_other() -> None:
    by_number = {record.name[:4]: record for record in RECORDS}
    for record in RECORDS:
        status = heading_and_status(record)[2]
        assert status == "accepted" or status.startswith("superseded by "), record
        for number in re.findall(r"\d{4}", status):
            assert record.name in by_number[number].read_text(), f"{number} does not name {record.name}"


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert (tmp_path / "ja" / "index.html") in pages
    loaded = r"<(?:script|img|iframe)[^>]+src=|<link[^>]+(?:stylesheet|preload)[^>]+href="
    foreign = re.compile(rf'(?:{loaded})"https?:')
    assert [page.name for page in pages if foreign.search(page.read_text())] == []
