"""The error of an index whose searches are answered outside this process."""

from __future__ import annotations


class SearchUnavailable(Exception):
    """What answers searches elsewhere does not answer now; the message is for whoever asked.

    Attributes:
        detail: where it is and what it said, for whoever runs it; nothing secret.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail or message
