"""JSON from elsewhere: of bounded size and depth, without numbers that JSON does not have."""

from __future__ import annotations

import json
from typing import Any, NoReturn

LARGEST = 64 << 20  # bytes
DEEPEST = 64


class JsonError(ValueError):
    """A text is not JSON that is read here; the message is one sentence."""


def parse(data: bytes, name: str) -> Any:
    """The value that ``data`` holds, which is called ``name`` in messages; raises `JsonError`."""
    if len(data) > LARGEST:
        raise JsonError(f"{name} holds {len(data)} bytes, and at most {LARGEST} are read")
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except RecursionError:
        raise JsonError(f"{name} is nested too deeply; at most {DEEPEST} levels are read") from None
    except ValueError as error:
        raise JsonError(f"{name} is not JSON: {' '.join(str(error).split())[:200]}") from None
    _check_depth(value, name)
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _check_depth(value: Any, name: str) -> None:
    level = [value]
    for _ in range(DEEPEST):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list)))
        level = [each for values in inner for each in values if isinstance(each, (dict, list))]
        if not level:
            return
    raise JsonError(f"{name} is nested too deeply; at most {DEEPEST} levels are read")
