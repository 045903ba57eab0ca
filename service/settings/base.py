"""Common to all sections of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "ANYO_"


def _named(path: Any) -> Any:
    """Return a path, or None for an empty one, which would otherwise mean the working folder."""
    text = str(path or "")
    if text != text.strip() or not text.isprintable():
        raise ValueError("it begins or ends with a blank, or holds a control character")
    return path or None


OptionalPath = Annotated[Path | None, BeforeValidator(_named)]


class Section(BaseSettings):
    """Base of the sections that `Settings` is made of. Field `name` is read from the variable `ANYO_NAME`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", validate_default=True)
