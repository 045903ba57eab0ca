"""Settings of items that change while the service runs."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from service.settings.base import Section
from service.settings.store_kinds import parse_store_url


def _checked(url: str) -> str:
    if url:
        parse_store_url(url, "the item store's URL")
    return url


class ItemSettings(Section):
    """Settings of items that change."""

    item_store: Annotated[str, AfterValidator(_checked)] = Field(
        default="",
        description="Where changes of items are kept, as a URL of the same forms as ANYO_STORE; several replicas share "
        "a Redis, or on one machine a file. Empty: items cannot be changed.",
    )
    max_changed_items: int = Field(
        default=200_000,
        ge=1,
        le=10_000_000,
        description="Items that may have been changed, deleted ones counted; all of them are held in memory.",
    )
