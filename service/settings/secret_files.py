"""Settings that are secrets may lie in files: `ANYO_STORE_FILE=/run/secrets/store` instead of `ANYO_STORE`.

That is how containers are given secrets: what is in the environment is seen by whoever may inspect a container.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

SECRETS = ("store", "cache", "api_keys", "admin_keys", "qdrant_api_key")
"""The settings that have such a variable: URLs may hold a password, and hashes of keys say who has one."""
SUFFIX = "_FILE"
LARGEST = 65_536


def file_variables(prefix: str) -> set[str]:
    """The variables that name files."""
    return {f"{prefix}{name.upper()}{SUFFIX}" for name in SECRETS}


def read_setting_files(prefix: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The settings whose `…_FILE` variable is set and not empty, with what their files hold, its last newline dropped.

    In a list, entries may stand on lines of their own. Raises ValueError, one sentence without any of the content.
    """
    found = {}
    for name in SECRETS:
        variable = f"{prefix}{name.upper()}"
        path = environment.get(variable + SUFFIX, "")
        if not path:
            continue
        if environment.get(variable):
            raise ValueError(f"{variable} and {variable}{SUFFIX} are both set; set one of them")
        found[name] = _content(Path(path), variable + SUFFIX)
        if name.endswith("_keys"):
            found[name] = ",".join(found[name].split())
    return found


def _content(path: Path, variable: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise ValueError(f"{variable} names {path}, which cannot be read: {error.strerror}") from None
    if len(data) > LARGEST:
        raise ValueError(f"{variable} names {path}, which is larger than {LARGEST} bytes")
    try:
        text = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError(f"{variable} names {path}, which is not UTF-8 text") from None
    if not text.strip():
        raise ValueError(f"{variable} names {path}, which is empty")
    return text
