"""Generated blocks of the pages: what stands between `<!-- generated: ID -->` and `<!-- end -->`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from scripts.pages import claims, race, readme, tables
from scripts.pages.results import ROOT, Experiment

BLOCK = re.compile(r"(<!-- generated: ([a-z0-9-]+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
PAGES = ("README.md", "README.ja.md", "docs")

Results = dict[str, Experiment]
Link = Callable[[Path], str]


def pages(root: Path = ROOT) -> list[Path]:
    """Every Markdown page that may hold generated blocks."""
    found = [root / name for name in PAGES]
    return sorted(page for each in found for page in ([each] if each.is_file() else each.rglob("*.md")))


def generate(page: Path, text: str, results: Results) -> str:
    """The text of a page with its blocks made anew; links are relative to the page.

    Raises KeyError, with the page and the id, for a block that nothing makes.
    """

    def link(target: Path) -> str:
        return Path(os.path.relpath(target, page.parent)).as_posix()

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n{render(match[2], results, link, page)}\n\n{match[3]}"

    return BLOCK.sub(block, text)


def render(name: str, results: Results, link: Link, page: Path) -> str:
    """The content of one block."""
    if name in results:
        return tables.whole(results[name])
    if name in readme.BLOCKS:
        return readme.BLOCKS[name](results, link)
    if name in race.BLOCKS:
        return race.BLOCKS[name](results, link)
    if name in claims.BLOCKS:
        return claims.BLOCKS[name](results, link)
    if name.startswith("older-"):
        return _older(name.removeprefix("older-"), results)
    raise KeyError(f"{page}: nothing makes the block {name!r}")


def _older(folder: str, results: Results) -> str:
    """The list of superseded and withdrawn experiments of a folder."""
    older = [each for each in results.values() if each["file"].startswith(f"{folder}/") and each["status"] != "current"]
    if not older:
        return "None."
    return "\n".join(
        f"- {each['title']}: {each['status']}; `{tables.path(each)}`;"
        f" commit {each['commit'] or 'not recorded'}, {each['date'] or 'date not recorded'}."
        for each in older
    )
