"""Make tables and plots of the documentation from the results, and its references from the code.

python -m scripts.pages [--check]
"""

from __future__ import annotations

import argparse
import sys

from scripts.pages.blocks import generate, pages
from scripts.pages.commands import command_reference
from scripts.pages.figures import figures
from scripts.pages.recipe_pages import recipe_pages
from scripts.pages.results import ROOT, load_results


def main(check: bool) -> int:
    """Write what differs and return 0; with `check` write nothing and return 1 where something differs."""
    results = load_results()
    made = {page: generate(page, page.read_text(encoding="utf-8"), results) for page in pages()}
    made |= figures(results) | command_reference() | recipe_pages()
    stale = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made[path], encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m scripts.pages", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="Write nothing; exit with 1 if a page is out of date.")
    sys.exit(main(parser.parse_args().check))
