"""Common base of all bodies. Unknown fields are refused.

A body that has an example carries it as `example`; `service/http/openapi.py` publishes it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

MAX_ID = 256
REQUEST_ID = "5b0c9f5e8d0f4a1b9c3d2e1f0a9b8c7d"  # in examples


class Body(BaseModel):
    """Base of every request body: JSON's own types (no "5" for 5), no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    example: ClassVar[dict[str, Any]]


class Answer(BaseModel):
    """Base of every answer; only documentation, since answers are written as bytes directly."""

    model_config = ConfigDict(extra="forbid")
    example: ClassVar[dict[str, Any]]
