"""Interface of the stores of item changes.

It keeps the newest content of every item that was ever changed, deleted ones too, each with a version of its own and
the number of the change that made it. Numbers rise by one with every change of any item, so "all changes after n" is
what a replica has to read. A write that has returned is as safe as the store can make it, as with histories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import orjson

Value = str | int | float | bool | tuple[str, ...]
State = Literal["live", "hidden", "deleted"]


@dataclass(frozen=True, slots=True)
class ItemContent:
    """Content of an item.

    Attributes:
        title, categories: as in a catalog.
        attributes: typed values by name.
        state: `hidden` items are never recommended, `deleted` ones do not exist.
        vector: a vector that the caller gave.
        vector_of: version of the artifact in whose space `vector` is.
    """

    title: str = ""
    categories: tuple[str, ...] = ()
    attributes: Mapping[str, Value] = field(default_factory=dict)
    state: State = "live"
    vector: tuple[float, ...] | None = None
    vector_of: str | None = None

    def to_json(self) -> bytes:
        """The content as JSON; equal contents give equal bytes."""
        return orjson.dumps(
            {name: getattr(self, name) for name in self.__slots__}
            | {"attributes": dict(self.attributes), "categories": list(self.categories)},
            option=orjson.OPT_SORT_KEYS,
        )

    @classmethod
    def from_json(cls, text: bytes | str) -> ItemContent:
        """Read what `to_json` wrote; raises ValueError."""
        found: Any = orjson.loads(text)
        try:
            attributes = {
                name: tuple(value) if isinstance(value, list) else value for name, value in found["attributes"].items()
            }
            vector = None if found["vector"] is None else tuple(found["vector"])
            return cls(
                found["title"], tuple(found["categories"]), attributes, found["state"], vector, found["vector_of"]
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a stored item is not one of this service's: {text[:80]!r}") from error


class StoredItem(NamedTuple):
    """An item as it is stored: `version` counts its own changes from 1, `number` is that of its last change."""

    item_id: str
    content: ItemContent
    version: int
    number: int


class ItemWrite(NamedTuple):
    """A new content of an item; `expected` is the version that it replaces (0: not stored yet; None: any)."""

    item_id: str
    content: ItemContent
    expected: int | None = None


class Written(NamedTuple):
    """Result of a write: the item as it is stored now. `outcome`: a content that is stored already changes nothing
    (`same`, whatever version was expected), one for another version than the stored one is not stored (`stale`)."""

    item: StoredItem
    outcome: Literal["changed", "same", "stale"]


class Changes(NamedTuple):
    """Changes in the order of their numbers, and the number of the newest of all."""

    items: list[StoredItem]
    newest: int


class ItemStore(Protocol):
    """Operations of a store of items that the service uses. None blocks the event loop; all raise StoreDown."""

    async def open(self) -> None:
        """Connect, and create what is missing; raises OSError, StartError or the backend's own error."""

    async def write(self, writes: Sequence[ItemWrite]) -> list[Written]:
        """Carry out writes one after the other, each for itself. Returning means that the backend acknowledged them."""

    async def get(self, item_id: str) -> StoredItem | None:
        """Return an item; None where it was never changed."""

    async def changes(self, after: int, most: int) -> Changes:
        """Return at most `most` of the items whose last change has a number above `after`."""

    async def close(self) -> None:
        """Finish what was begun and disconnect."""


def never_stored(item_id: str) -> StoredItem:
    """Return what stands for an item that the store does not hold: version 0."""
    return StoredItem(item_id, ItemContent(state="deleted"), 0, 0)
