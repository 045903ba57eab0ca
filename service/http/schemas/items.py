"""Bodies of the catalog: items as they are read, and changes of them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from index.filters.language import CATEGORIES as CATEGORIES_NAME
from index.filters.stored import LARGEST, LONGEST_NAME, LONGEST_VALUE, MOST_ATTRIBUTES, MOST_VALUES
from modeling.text import plain_text
from service.http.schemas.base import MAX_ID, Answer, Body
from service.http.schemas.recommend import ATTRIBUTES_ASKED, CATEGORIES_ASKED, AnsweredAttributes
from service.item_stores.base import ItemContent

MAX_TITLE, MAX_NAME, MAX_TEXT = 1000, LONGEST_NAME, LONGEST_VALUE
MAX_CATEGORIES, MAX_ATTRIBUTES, MAX_VALUES = 64, MOST_ATTRIBUTES, MOST_VALUES
MAX_DIM = 8192
MAX_LINES = 1000

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
AttributeValue = bool | Text | Number | Annotated[list[Text], Field(max_length=MAX_VALUES)]
Category = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
Categories = Annotated[list[Category], Field(max_length=MAX_CATEGORIES)]
Coordinate = Annotated[float, Field(ge=-1e6, le=1e6)]
Vector = Annotated[list[Coordinate], Field(min_length=1, max_length=MAX_DIM)]
State = Literal["live", "hidden"]

TITLE = "What the item is called; a new item is embedded from it."
CATEGORIES = "Names that `categories` of a request filters by."
ATTRIBUTES = "Values by name: a string, a number, true or false, or a list of strings."
VECTOR = "A vector in the item space of `artifact`, which is used as it is instead of one made of the title."
NAMED = "an item has no attribute `categories`: give its categories in the field of that name"
STATE = "`hidden`: kept, and never recommended."
VERSION = "How often the item was changed; 0: it is as the artifact was trained."
OF = "Whose item space `vector` is in; the default dense artifact where left out."


def _titled(title: str) -> str:
    plain = plain_text(title)
    if not plain:
        raise ValueError("the title is blank; write what the item is called")
    return plain


def _without_categories(attributes: dict[str, Any] | None) -> dict[str, Any] | None:
    if attributes and CATEGORIES_NAME in attributes:
        raise ValueError(NAMED)
    return attributes


class ItemBody(Body):
    """A whole item."""

    title: str = Field(min_length=1, max_length=MAX_TITLE, description=TITLE)
    categories: Categories = Field(default_factory=list, description=CATEGORIES)
    attributes: dict[Name, AttributeValue] = Field(
        default_factory=dict, max_length=MAX_ATTRIBUTES, description=ATTRIBUTES
    )
    state: State = Field(default="live", description=STATE)
    vector: Vector | None = Field(default=None, description=VECTOR)
    artifact: str | None = Field(default=None, max_length=MAX_ID, description=OF)

    _plain = field_validator("title")(_titled)
    _named = field_validator("attributes")(_without_categories)

    example: ClassVar[dict[str, Any]] = {
        "title": "The Lighthouse at Cape Sorrow",
        "categories": ["mystery"],
        "attributes": {"price": 12.5, "language": "en", "in_stock": True, "tags": ["sea", "crime"]},
    }


class ItemLine(ItemBody):
    """A line of `POST /items`: a whole item and its id."""

    item_id: str = Field(min_length=1, max_length=MAX_ID)
    if_version: int | None = Field(
        default=None, ge=0, description="The version that it replaces (0: the item was never changed); null: any."
    )

    example: ClassVar[dict[str, Any]] = {"item_id": "d-017", **ItemBody.example}


class ItemPatch(Body):
    """The fields of an item that are to change."""

    title: str | None = Field(default=None, min_length=1, max_length=MAX_TITLE, description=TITLE)
    categories: Categories | None = Field(default=None, description=CATEGORIES)
    attributes: dict[Name, AttributeValue | None] | None = Field(
        default=None, max_length=MAX_ATTRIBUTES, description="Values to set by name; null takes one away."
    )
    state: State | None = Field(default=None, description=STATE)
    vector: Vector | None = Field(default=None, description=VECTOR)
    artifact: str | None = Field(default=None, max_length=MAX_ID, description=OF)

    _named = field_validator("attributes")(_without_categories)

    @field_validator("title")
    @classmethod
    def _plain(cls, title: str | None) -> str | None:
        return None if title is None else _titled(title)

    example: ClassVar[dict[str, Any]] = {"state": "hidden"}


class Item(Answer):
    """An item of the catalog. `version` counts its changes; 0: it is as the artifact was trained."""

    item_id: str
    title: str
    categories: list[str]
    popularity: int
    attributes: AnsweredAttributes
    state: Literal["live", "hidden"] = Field(description=STATE)
    version: int = Field(description=VERSION)

    example: ClassVar[dict[str, Any]] = {
        "item_id": "d-017",
        "title": "The Lighthouse at Cape Sorrow",
        "categories": ["mystery"],
        "popularity": 42,
        "attributes": {"price": 12.5},
        "state": "live",
        "version": 1,
    }


class ItemList(Answer):
    """A page of items; `next` is the offset of the next page, or null."""

    items: list[Item]
    next: int | None

    example: ClassVar[dict[str, Any]] = {"items": [Item.example], "next": 20}


class Recommends(Answer):
    """Whether a loaded artifact can recommend an item, and the reason where it cannot."""

    artifact: str
    recommends: bool
    reason: str | None


class ItemChange(Answer):
    """Result of a change: `changed` is false where the item was as it was sent already."""

    item_id: str
    version: int = Field(description=VERSION)
    state: Literal["live", "hidden", "deleted"] = Field(description="What the item is now.")
    changed: bool = Field(description="False where the item was so already.")
    artifacts: list[Recommends]

    example: ClassVar[dict[str, Any]] = {
        "item_id": "d-017",
        "version": 1,
        "state": "live",
        "changed": True,
        "artifacts": [{"artifact": "anyo-demo-tiny", "recommends": True, "reason": None}],
    }


class LineOutcome(Answer):
    """Result of one line: `stale` where the item had another version than `if_version`, and was left as it was."""

    item_id: str
    version: int = Field(description=VERSION)
    outcome: Literal["changed", "same", "stale"]


class BulkAnswer(Answer):
    """Results of all lines, in their order."""

    items: list[LineOutcome]

    example: ClassVar[dict[str, Any]] = {"items": [{"item_id": "d-017", "version": 1, "outcome": "changed"}]}


class SimilarItem(Answer):
    """An item that is close to another one; `score` is the inner product of their vectors."""

    rank: int
    item_id: str
    title: str
    score: float = Field(description="The inner product of the two vectors.")
    categories: list[str] | None = Field(default=None, description=CATEGORIES_ASKED)
    attributes: AnsweredAttributes | None = Field(default=None, description=ATTRIBUTES_ASKED)


class SimilarAnswer(Answer):
    """The items closest to an item, the closest first."""

    item_id: str
    items: list[SimilarItem]

    example: ClassVar[dict[str, Any]] = {
        "item_id": "d-017",
        "items": [{"rank": 1, "item_id": "d-112", "title": "The Drowned Bell", "score": 0.83}],
    }


def content_of(body: ItemBody, vector_of: str | None) -> ItemContent:
    """Return the content that a body asks for."""
    attributes = {name: tuple(each) if isinstance(each, list) else each for name, each in body.attributes.items()}
    return ItemContent(
        body.title,
        tuple(dict.fromkeys(body.categories)),
        attributes,
        body.state,
        None if body.vector is None else tuple(body.vector),
        None if body.vector is None else vector_of,
    )
