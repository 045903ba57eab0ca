"""Pages for people: recommendations at `/`, the interactive description of the API at `/docs`.

Everything comes from here, nothing from another host. Of scripts and styles a page may run its own, known by their
hashes, and those of Swagger UI, which a package brings.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.util
import json
import re
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Literal, get_args

from fastapi import APIRouter, Query
from starlette.responses import Response

from service.http.openapi import shows
from service.http.rights import Right, opened_by

router = APIRouter(tags=["operations"])

PAGES = Path(__file__).parent.parent / "page"
Language = Literal["en", "ja"]
LIBRARY = "fastapi_offline"
"""The package that holds Swagger UI; it is looked into and not imported."""


@router.get("/", responses=shows("text/html", "The page for people."), response_class=Response)
@opened_by(Right.OPEN)
async def page(
    lang: Annotated[Language | None, Query(description="Language of the page; left out: the browser's.")] = None,
) -> Response:
    """Return the page that lets a person compose a history and see recommendations."""
    return _html(*HTML[lang or "en"])


@router.get("/docs", responses=shows("text/html", "Swagger UI."), response_class=Response)
@opened_by(Right.OPEN)
async def docs() -> Response:
    """Return the interactive description of the API; what it sends needs the same keys as any other request."""
    return _html(DOCS_HTML, DOCS_POLICY)


@router.get("/docs/swagger-ui-bundle.js", include_in_schema=False)
@opened_by(Right.OPEN)
async def docs_script() -> Response:
    """Return the script of Swagger UI."""
    return _asset("swagger-ui-bundle.js", "text/javascript; charset=utf-8")


@router.get("/docs/swagger-ui.css", include_in_schema=False)
@opened_by(Right.OPEN)
async def docs_style() -> Response:
    """Return the style of Swagger UI."""
    return _asset("swagger-ui.css", "text/css; charset=utf-8")


def _html(content: bytes, policy: str) -> Response:
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(content, media_type="text/html; charset=utf-8", headers=headers)


def _asset(name: str, kind: str) -> Response:
    return Response(_file_of_library(name), media_type=kind, headers={"cache-control": "max-age=86400"})


@cache
def _file_of_library(name: str) -> bytes:
    """Return a file of Swagger UI, read once and when it is first asked for."""
    found = importlib.util.find_spec(LIBRARY)
    assert found is not None and found.origin is not None, f"{LIBRARY} is a dependency of anyo"
    return (Path(found.origin).parent / "static" / name).read_bytes()


def _page(name: str, files: str = "", images: str = "data:", language: Language = "en") -> tuple[bytes, str]:
    """Return a page and a policy under which only its own script and style can run, whatever a title holds.

    Args:
        name: of the file.
        files: source of scripts and styles beside the page's own; "": none.
        images: their sources.
        language: of its texts before its script runs.
    """
    content = _with_words((PAGES / name).read_text(), language).encode()
    allowed = {}
    for tag in ("script", "style"):
        found = re.search(rb"<%s>(.*?)</%s>" % (tag.encode(), tag.encode()), content, re.DOTALL)
        assert found is not None, f"{name} has no <{tag}>"
        own = base64.b64encode(hashlib.sha256(found.group(1)).digest()).decode()
        allowed[tag] = f"'sha256-{own}'{files}"
    policy = (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; connect-src 'self'; "
        f"img-src {images}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return content, policy


def _with_words(text: str, language: Language) -> str:
    """Return a page with its texts: one language in the elements that name them, all of them in its script."""
    words = json.loads((PAGES / "words.json").read_text())

    def said(key: str) -> str:
        return html.escape(words[key][language])

    def with_attribute(name: str, found: re.Match[str]) -> str:
        return f'{found[0]} {name}="{said(found[1])}"'

    text = re.sub(r'(data-t="(\w+)"[^>]*>)(?=<)', lambda found: found[1] + said(found[2]), text)
    for kind, attribute in (("placeholder", "placeholder"), ("label", "aria-label")):
        pattern = rf'data-t-{kind}="(\w+)"'
        text = re.sub(pattern, partial(with_attribute, attribute), text)
    table = json.dumps(words, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return text.replace("const WORDS = {};", f"const WORDS = {table};")


HTML: dict[Language, tuple[bytes, str]] = {each: _page("index.html", language=each) for each in get_args(Language)}
DOCS_HTML, DOCS_POLICY = _page("docs.html", files=" 'self'")
