"""Stores of users' histories. A kind of store is `KIND.py` here and `service/settings/store_kinds/KIND.py`.

`KIND.py` has a function `open_url(place, settings, metrics)` that returns the (not yet opened) store of a parsed URL.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from service.errors import StartError
from service.observability.metrics import Metrics
from service.settings import Settings
from service.settings.addresses import StoreUrlError
from service.settings.store_kinds import kind_of_store, parse_store_url
from service.stores.base import HistoryStore


def open_store(url: str, settings: Settings, metrics: Metrics) -> HistoryStore:
    """Return the (not yet opened) store of a URL, as `settings` say; raises StartError for a URL that is wrong."""
    try:
        place, kind = parse_store_url(url), kind_of_store(url)
    except StoreUrlError as error:
        raise StartError(str(error)) from None
    # By name, so that a process loads only the kind that it uses.
    return cast(HistoryStore, import_module(f"{__name__}.{kind}").open_url(place, settings, metrics))
