"""A filter as JSON, in requests and programs: conditions on typed attributes of items, joined by `all` and `any`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from index.filters.language import Condition, Filter, every, some, typed
from index.filters.stored import LARGEST, LONGEST_NAME, LONGEST_VALUE

MAX_DEPTH, MAX_PARTS = 5, 64  # of filters in filters; of all together
MAX_VALUES, MAX_CHARACTERS = 500, 20_000  # of all conditions together

Text = Annotated[str, Field(max_length=LONGEST_VALUE)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Value = bool | Text | Number
LISTS = ("any_of", "all_of", "none_of")
BOUNDS = ("at_least", "above", "at_most", "below")


class FilterBody(BaseModel):
    """Either a condition on one `attribute`, or `all` or `any` of several filters. All of a condition must hold.

    `categories` is the attribute of an item's categories, a list of strings. An item without the attribute passes no
    condition on it but `none_of`.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    attribute: str | None = Field(
        default=None, min_length=1, max_length=LONGEST_NAME, description="Name of an attribute, or `categories`."
    )
    any_of: list[Value] | None = Field(
        default=None, min_length=1, description="The attribute is one of these; a list holds one of them at least."
    )
    all_of: list[Value] | None = Field(default=None, min_length=1, description="The list holds all of these.")
    none_of: list[Value] | None = Field(
        default=None, min_length=1, description="The attribute is none of these; a list holds none of them."
    )
    at_least: Number | None = Field(default=None, description="The number is this or more.")
    above: Number | None = Field(default=None, description="The number is more than this.")
    at_most: Number | None = Field(default=None, description="The number is this or less.")
    below: Number | None = Field(default=None, description="The number is less than this.")
    all: list[FilterBody] | None = Field(default=None, min_length=1, description="Filters that must all be passed.")
    any: list[FilterBody] | None = Field(
        default=None, min_length=1, description="Filters of which one at least must be passed."
    )

    @model_validator(mode="after")
    def _is_one_thing(self) -> FilterBody:
        forms = [name for name in ("attribute", "all", "any") if getattr(self, name) is not None]
        if len(forms) != 1:
            raise ValueError(
                "a filter has one of attribute, all and any" + (", not " + " and ".join(forms) if forms else "")
            )
        asked = [name for name in (*LISTS, *BOUNDS) if getattr(self, name) is not None]
        if forms == ["attribute"] and not asked:
            raise ValueError(f"a condition on an attribute needs one of {', '.join((*LISTS, *BOUNDS))}")
        if forms != ["attribute"] and asked:
            raise ValueError(f"{asked[0]} is for a filter with attribute, not with {forms[0]}")
        return self

    @property
    def parts(self) -> Sequence[FilterBody]:
        """The filters that it joins."""
        return self.all or self.any or ()

    def plain(self) -> Filter:
        """Return it without the types of a body."""
        if self.attribute is None:
            join = some if self.any is not None else every
            return join([part.plain() for part in self.parts])
        given: dict[str, Any] = {name: getattr(self, name) for name in BOUNDS}
        given |= {
            name: None if (values := getattr(self, name)) is None else tuple(map(typed, values)) for name in LISTS
        }
        return Condition(self.attribute, **given)

    example: ClassVar[dict[str, Any]] = {
        "all": [
            {"attribute": "price", "at_most": 20},
            {"attribute": "language", "any_of": ["en", "ja"]},
            {"any": [{"attribute": "in_stock", "any_of": [True]}, {"attribute": "tags", "all_of": ["sea", "crime"]}]},
        ]
    }


def _parts(body: FilterBody, depth: int = 1) -> Iterator[tuple[FilterBody, int]]:
    yield body, depth
    for part in body.parts:
        yield from _parts(part, depth + 1)


def _bounded(body: FilterBody) -> FilterBody:
    parts = list(_parts(body))
    values = [value for part, _ in parts for name in LISTS for value in getattr(part, name) or ()]
    for found, most, what in (
        (max(depth for _, depth in parts), MAX_DEPTH, "levels"),
        (len(parts), MAX_PARTS, "parts"),
        (len(values), MAX_VALUES, "values"),
        (sum(len(value) for value in values if isinstance(value, str)), MAX_CHARACTERS, "characters in its values"),
    ):
        if found > most:
            raise ValueError(f"the filter has {found} {what}; at most {most} are taken")
    return body


FilterField = Annotated[FilterBody, AfterValidator(_bounded)]
FILTER = "Only items that pass this filter on their attributes."
FILTER_OF: TypeAdapter[FilterBody] = TypeAdapter(FilterField)


def read_filter(given: str | Mapping[str, Any]) -> Filter:
    """A filter from its JSON, as text or as an object.

    Raises:
        ValueError: it is none; the message is one sentence.
    """
    try:
        text = given if isinstance(given, str) else json.dumps(given)
        return FILTER_OF.validate_json(text).plain()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ").splitlines()[0]
        raise ValueError(f"filter{': ' + where if where else ''}: {message[:300]}") from None
