"""A store in a SQLite file: `sqlite:///PATH` or `sqlite:///:memory:`. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass

from service.settings.addresses import StoreUrlError

SCHEMES = ("sqlite",)
MEMORY = ":memory:"
KNOWN = f"sqlite:///PATH, sqlite:///{MEMORY}"


@dataclass(frozen=True, slots=True)
class SqliteUrl:
    """A SQLite file, or `:memory:`."""

    path: str

    def __str__(self) -> str:
        return f"sqlite:///{self.path}"


def parse(url: str, what: str, known: str) -> SqliteUrl:
    """Return what a URL of this kind says; raises StoreUrlError, which calls it `what` and names all `known` forms."""
    path = url.removeprefix("sqlite:///")
    if path == url or not path:
        raise StoreUrlError(f"{what} begins with sqlite: and names no file; known are {known}")
    if not path.isprintable() or path != path.strip():
        raise StoreUrlError(f"{what} begins or ends with a blank, or holds a control character")
    if re.search("[?#]", path):
        raise StoreUrlError(f"{what} holds '?' or '#'; sqlite:///PATH has no parameters")
    if path.startswith("~"):
        raise StoreUrlError(f"{what} begins with '~', which is not replaced here; write the folder out")
    if path != MEMORY and (path.startswith((":", "file:")) or path.endswith("/")):
        raise StoreUrlError(f"{what} names no file; known are sqlite:///PATH and sqlite:///{MEMORY}")
    return SqliteUrl(path)
