"""MkDocs hook: what a page links to outside docs/ is no page of the site, so the site shows its path instead.

In the repository such a link works as it is. A link to a file that does not exist stops the build.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\.?/[^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The text of a page, with links that leave docs/ written as paths.

    Raises:
        PluginError: the file does not exist.
    """
    folder = Path(page.file.abs_src_path).parent

    def shown(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return match[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_uri} links to {match[2]}, which does not exist")
        path = target.relative_to(ROOT).as_posix()
        return f"`{path}`" if match[1].strip("`") in (path, target.name) else f"{match[1]} (`{path}`)"

    return LINK.sub(shown, markdown)
