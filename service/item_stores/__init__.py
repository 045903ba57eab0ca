"""Stores of item changes, for the same kinds of stores as users' histories.

`KIND.py` has a function `open_url(place, settings, metrics)` that returns the (not yet opened) store of a parsed URL.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from service.errors import StartError
from service.item_stores.base import ItemStore
from service.observability.metrics import Metrics
from service.settings import Settings
from service.settings.addresses import StoreUrlError
from service.settings.store_kinds import kind_of_store, parse_store_url

WHAT = "the item store's URL"


def open_item_store(url: str, settings: Settings, metrics: Metrics) -> ItemStore:
    """Return the (not yet opened) item store of a URL; raises StartError for a URL that is wrong."""
    try:
        place, kind = parse_store_url(url, WHAT), kind_of_store(url, WHAT)
        module = import_module(f"{__name__}.{kind}")
    except StoreUrlError as error:
        raise StartError(str(error)) from None
    except ModuleNotFoundError:
        raise StartError(f"{WHAT} is one of a store that keeps no items; sqlite and redis do") from None
    return cast(ItemStore, module.open_url(place, settings, metrics))
