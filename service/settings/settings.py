"""All settings of one service process, from `ANYO_…` variables and the command line.

`docs/reference/settings.md` has a row for each of them, and a test holds the two together.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError, model_validator

from index.command_line.border import TRACE
from service.settings.artifacts import ArtifactSettings
from service.settings.base import PREFIX, Section
from service.settings.dense import DenseSettings
from service.settings.generative import GenerativeSettings
from service.settings.history_store import HistoryStoreSettings
from service.settings.http import HttpSettings
from service.settings.items import ItemSettings
from service.settings.observability import ObservabilitySettings
from service.settings.qdrant import QdrantSettings
from service.settings.secret_files import file_variables, read_setting_files
from service.settings.shared_cache import SharedCacheSettings
from service.settings.store_kinds import sections

UNSHOWN = ("store", "cache", "item_store", "otlp_endpoint", "qdrant_url", "qdrant_api_key")  # may hold a password
LISTS = ("artifacts", "api_keys", "admin_keys", "allowed_hosts", "cors_origins")
S = TypeVar("S", bound=Section)


class SettingsError(Exception):
    """A setting is wrong; the message names it, what was given and what is allowed."""


class Settings(
    HttpSettings,
    ArtifactSettings,
    HistoryStoreSettings,
    SharedCacheSettings,
    ItemSettings,
    DenseSettings,
    QdrantSettings,
    GenerativeSettings,
    ObservabilitySettings,
    *sections(),  # type: ignore[misc]  # read with `section`
):
    """The settings of one service process. An unknown variable that starts with `ANYO_` is refused."""

    def section(self, kind: type[S]) -> S:
        """Return these settings as a section that a kind of store has brought."""
        return cast(S, self)

    @model_validator(mode="before")
    @classmethod
    def _known_and_split(cls, given: Any) -> Any:
        known = {PREFIX + name.upper() for name in cls.model_fields} | {TRACE} | file_variables(PREFIX)
        ours = sorted(name for name in os.environ if name.upper().startswith(PREFIX))
        unknown = [name for name in ours if name.upper() not in known]
        if unknown:
            raise ValueError(f"unknown variable {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        twice = [name for name in ours if sum(other.upper() == name.upper() for other in ours) > 1]
        if twice:
            raise ValueError(f"{' and '.join(twice)} are one setting; set one of them")
        for name, text in read_setting_files(PREFIX, os.environ).items() if isinstance(given, dict) else ():
            if not given.get(name):  # what the command line says goes first
                given[name] = text
        for name in LISTS if isinstance(given, dict) else ():
            if isinstance(given.get(name), str):
                given[name] = _entries(name, given[name])
        return given

    @model_validator(mode="after")
    def _sections_agree(self) -> Settings:
        if self.store_timeout_ms > self.deadline_ms:
            raise ValueError(
                f"store_timeout_ms ({self.store_timeout_ms}) is more than deadline_ms ({self.deadline_ms}): "
                "a slow store would end every request with 504 before it could be answered without the store"
            )
        return self


NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,127})=(.+)", re.ASCII | re.DOTALL)


def named_folder(given: Path) -> tuple[str | None, Path]:
    """Return the name and the folder in `NAME=FOLDER`, or None and the folder where no name is given."""
    found = None if given.is_dir() else NAMED.fullmatch(str(given))
    return (None, given) if found is None else (found[1], Path(found[2]))


def _entries(name: str, text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",")) if text.strip() else ()
    if not all(parts):
        # A key whose variable is empty would silently be no key.
        raise ValueError(f"{name} ({PREFIX}{name.upper()}) has an empty entry between, before or behind its commas")
    return parts


def load_settings(**given: Any) -> Settings:
    """Return the settings from the environment, overruled by `given` (None means not given).

    Raises SettingsError with one line a mistake: the setting, what was given, what is allowed.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("\n".join(_sentence(mistake) for mistake in error.errors())) from None


def _sentence(mistake: Any) -> str:
    message = mistake["msg"].removeprefix("Value error, ")
    if not mistake["loc"]:
        return str(message)
    name = str(mistake["loc"][0])
    if name in UNSHOWN:
        return f"setting {name} ({PREFIX}{name.upper()}): {message}"
    if name in ("api_keys", "admin_keys"):
        # Whoever put the key itself here must not find it in a log.
        if mistake["type"] == "value_error":
            return f"setting {name} ({PREFIX}{name.upper()}): it holds {message}; `python -m service key` makes a key"
        return (
            f"setting {name} ({PREFIX}{name.upper()}): an entry is not NAME:HASH or HASH, where HASH is 64 lower-case "
            "hexadecimal digits; `python -m service key` prints one"
        )
    return f"setting {name} ({PREFIX}{name.upper()}): {message}; given: {mistake['input']!r}"
