"""Bodies before they are fields: content type, character set, compression, and mistakes at a bounded cost."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from itertools import islice
from typing import Any

from pydantic import BaseModel, ValidationError

from index.filters.body import FilterBody
from service.errors import AnyoError, TooLarge, shown
from service.http.errors import BadRequest, UnsupportedMedia
from service.http.schemas.recommend import DiversityRequest, FreeTitle, RecommendRequest, RerankRequest
from service.http.schemas.users import NewEvent

CHARSETS = frozenset({"utf-8", "utf8", "us-ascii"})
GZIP = frozenset({"gzip", "x-gzip"})
GZIP_WINDOW = 16 + zlib.MAX_WBITS  # zlib's way to say: a gzip header
MARKS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
MISTAKES_MADE = 64  # mistakes of a body that are made into objects; a body with more of them is cut first
UNKNOWN_KEPT = MISTAKES_MADE // 2  # unknown fields that are left in an object of such a body
DEPTH = 5  # of objects whose fields are checked: the body, a batch, its entries, their lists, the entries of these
INNER_FIELDS = frozenset().union(
    *(m.model_fields for m in (FreeTitle, NewEvent, RerankRequest, DiversityRequest, RecommendRequest, FilterBody))
)


def check_content_type(declared: str) -> None:
    """Raise BadRequest unless it is JSON, UnsupportedMedia unless its character set is one that JSON is read in."""
    kind, _, rest = declared.partition(";")
    kind = kind.strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        # Not pedantry: a foreign web page may send any other type to this address without asking first.
        raise BadRequest(
            f"the body has content type {shown(declared)}; send it with 'content-type: application/json'",
            code="not_json",
        )
    for parameter in rest.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip(' \t"').lower() not in CHARSETS:
            raise UnsupportedMedia(f"the body's charset is {shown(value.strip())}; send JSON in UTF-8")


def decoded(body: bytes, encoding: str, limit: int) -> bytes:
    """Return a body without its `content-encoding`. Raises BadRequest, UnsupportedMedia, and TooLarge where it has more
    than `limit` bytes then, which are not made."""
    names = [name for each in encoding.split(",") if (name := each.strip().lower()) not in ("", "identity")]
    if not names:
        return body
    if len(names) > 1 or names[0] not in GZIP:
        raise UnsupportedMedia(
            f"the body's content-encoding is {shown(encoding)}; send it as it is, or with 'content-encoding: gzip'"
        )
    inflate = zlib.decompressobj(GZIP_WINDOW)
    try:
        plain = inflate.decompress(body, limit + 1)
    except zlib.error as error:
        raise BadRequest(f"the body is declared as gzip and cannot be decompressed: {error}", code="not_gzip") from None
    if len(plain) > limit:
        raise TooLarge(f"the body is larger than {limit} bytes once it is decompressed (ANYO_MAX_BODY_BYTES)")
    if not inflate.eof or inflate.unused_data:
        found = "has bytes behind its end" if inflate.eof else "ends too early"
        raise BadRequest(f"the body is declared as gzip and {found}; send one complete gzip stream", code="not_gzip")
    return plain


def not_json(body: bytes, reason: str) -> AnyoError:
    """Return the error of a body that no JSON parser takes; `reason` is what the parser said."""
    for mark, name in MARKS.items():
        if body.startswith(mark):
            reason = f"it begins with a byte order mark of {name}; send UTF-8 without a mark"
    if body.startswith(b"\x1f\x8b"):
        reason = "it is compressed by gzip; send it with 'content-encoding: gzip'"
    elif not body:
        reason = "it is empty"
    elif b"\0" in body[:4] and body[:2] not in MARKS:
        reason = "it begins like UTF-16 or UTF-32; send UTF-8"
    return BadRequest(f"the body is not JSON: {reason}", code="not_json")


def first_mistakes(error: ValidationError, body: bytes, model: type[BaseModel]) -> Sequence[Any]:
    """Return the mistakes of a body, or some of them, the first among them: refusing must not cost more than answering.

    The check stops at the first wrong entry of a list (`FailFast` in the schemas), so that only objects with many
    unknown fields can make many mistakes.
    """
    if error.error_count() <= MISTAKES_MADE:
        return error.errors(include_url=False)
    try:
        model.model_validate_json(json.dumps(_cut(json.loads(body), frozenset(model.model_fields))))
    except ValidationError as of_less:
        return of_less.errors(include_url=False)
    except ValueError:  # what only one of the parsers reads
        pass
    return error.errors(include_url=False)


def _cut(value: Any, known: frozenset[str], depth: int = 0) -> Any:
    """Return a JSON value with few of its objects' unknown fields; what lies deeper than any field is left as it is."""
    if isinstance(value, dict) and depth < DEPTH:
        names = [name for name in value if name in known]
        names += islice((name for name in value if name not in known), UNKNOWN_KEPT)
        return {name: _cut(value[name], INNER_FIELDS, depth + 1) for name in names}
    if isinstance(value, list) and depth < DEPTH:
        return [_cut(each, INNER_FIELDS, depth + 1) if isinstance(each, dict) else each for each in value]
    return value
