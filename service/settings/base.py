"""What every section of the settings has in common."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "ANYO_"


class Section(BaseSettings):
    """Base of the sections that `Settings` is made of. Field `name` is read from the variable `ANYO_NAME`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", validate_default=True)
