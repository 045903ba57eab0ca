"""Names of the parts of an artifact in memory; `GET /artifacts` publishes these names.

The one list of them: methods name their networks by it, the service its own parts, and the API's schema is made from
it, so that nothing is published under a name that the schema does not know.
"""

from __future__ import annotations

from enum import StrEnum


class Part(StrEnum):
    """A kind of part."""

    WEIGHTS = "weights"
    TITLE_READER = "title_reader"
    TITLE_SPACE = "title_space"
    WHOLE_WORDS = "whole_words"
    COLLABORATIVE = "collaborative"
    ITEM_SLOTS = "item_slots"
    ITEM_INPUTS = "item_inputs"
    TITLE_TOKENS = "title_tokens"
    CATALOG = "catalog"
    INDEX = "index"
