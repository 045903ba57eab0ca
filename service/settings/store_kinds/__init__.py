"""The kinds of history stores: one file a kind, found by its name.

A file `NAME.py` here has `SCHEMES` (of its URLs), `KNOWN` (their forms, for messages), `parse(url, what, known)` and,
if the kind has settings of its own, `SECTION`. The store itself is `service/stores/NAME.py`. URLs are read strictly:
everything in one has to mean something. No message repeats a URL: `str` of a parsed one has no password, and the errors
name the part that is wrong.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any, Protocol, cast

from service.settings.addresses import StoreUrlError
from service.settings.base import Section

DEFAULT = "sqlite"  # comes first in messages


class StoreKind(Protocol):
    """The module of one kind of store."""

    SCHEMES: tuple[str, ...]
    KNOWN: str

    def parse(self, url: str, what: str, known: str) -> Any:
        """Return what a URL says, of which `str` can be shown; raises StoreUrlError."""


@cache
def kinds() -> Mapping[str, StoreKind]:
    """Return the kinds of stores by name, the default one first."""
    names = sorted((found.name for found in pkgutil.iter_modules(__path__)), key=lambda name: (name != DEFAULT, name))
    return {name: cast(StoreKind, import_module(f"{__name__}.{name}")) for name in names}


def sections() -> tuple[type[Section], ...]:
    """Return the sections of settings that kinds of stores bring."""
    return tuple(kind.SECTION for kind in kinds().values() if hasattr(kind, "SECTION"))


def kind_of_store(url: str, what: str = "the store's URL") -> str:
    """Return the name of the kind of store a URL is for; raises StoreUrlError."""
    scheme = url.partition(":")[0]
    for name, kind in kinds().items():
        if scheme in kind.SCHEMES:
            return name
    raise StoreUrlError(f"{what} is not known; known are {_known()}")


def parse_store_url(url: str, what: str = "the store's URL") -> Any:
    """Return what a store's URL says; raises StoreUrlError, whose message calls the URL `what`."""
    return kinds()[kind_of_store(url, what)].parse(url, what, _known())


def shown(url: str) -> str:
    """Return a URL as it may stand in messages and logs; of one that is wrong only that it is."""
    try:
        return str(parse_store_url(url))
    except StoreUrlError:
        return "(a URL that cannot be read)"


def _known() -> str:
    return ", ".join(kind.KNOWN for kind in kinds().values())
