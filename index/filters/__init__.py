"""Filters by typed attributes: `language` says what a filter is and whether an item passes it, `table` finds all items
of a catalog that pass it."""
