"""Bodies of probes."""

from __future__ import annotations

from typing import Any, ClassVar

from service.http.schemas.base import Answer


class Status(Answer):
    """A probe's answer."""

    status: str

    example: ClassVar[dict[str, Any]] = {"status": "ready"}
