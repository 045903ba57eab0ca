"""Amazon reviews of 2014, 2018 and 2023: reviews, metadata, and tables of ratings without a header."""

from __future__ import annotations

from training.data.importing.content import is_epoch, mostly_empty, share
from training.data.importing.table import Guess, Table

_REVIEWS = {
    ("reviewerID", "asin", "unixReviewTime"): {"rating": "overall", "review": "reviewText", "summary": "summary"},
    ("user_id", "parent_asin", "timestamp"): {"rating": "rating", "review": "text", "summary": "title"},
}
_ITEM = {
    "title": ("title",),
    "categories": ("categories", "category", "main_category"),
    "brand": ("brand", "store"),
    "description": ("description",),
    "price": ("price",),
    "attributes": ("details", "features", "feature"),
}
_SIGNS = {"details", "features", "main_category", "salesRank", "salesrank", "also_buy", "related", "imUrl", "store"}


def recognise(table: Table) -> Guess | None:
    """Reviews or products."""
    held = set(table.frame.columns)
    for (user, item, time), more in _REVIEWS.items():
        if {user, item, time} <= held:
            roles = {"user": user, "item": item, "time": time, **{k: v for k, v in more.items() if v in held}}
            return Guess(table, "interactions", roles, "Amazon reviews")
    product = next((n for n in ("parent_asin", "asin") if n in held and not mostly_empty(table.frame[n])), None)
    if product and "title" in held and held & {*_SIGNS, "categories", "category", "brand", "price", "description"}:
        roles = {"item": product}
        for role, names in _ITEM.items():
            if found := [name for name in names if name in held]:
                roles[role] = found[0]
        return Guess(table, "items", roles, "Amazon products")
    return None if table.header or table.frame.width != 4 else _ratings(table)


def _ratings(table: Table) -> Guess | None:
    first, second, rating, time = (table.frame.to_series(at).head(1000) for at in range(4))
    if share(rating, r"^[1-5](\.0)?$") < 1 or not is_epoch(time):
        return None
    products = [share(each, r"^[0-9B][0-9A-Z]{9}$") > 0.95 for each in (first, second)]
    if products[0] == products[1]:
        return None
    user, item = ("column_2", "column_1") if products[0] else ("column_1", "column_2")
    roles = {"user": user, "item": item, "rating": "column_3", "time": "column_4"}
    return Guess(table, "interactions", roles, "Amazon ratings")
