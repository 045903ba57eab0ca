"""Parts of a long benchmark that are kept in a file, so that a run that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any


class State:
    """What parts that have ended gave, as JSON in a file; None: nothing is kept."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.kept: dict[str, Any] = json.loads(file.read_text()) if file is not None and file.exists() else {}

    async def part(self, name: str, make: Callable[[], Awaitable[Any]]) -> Any:
        """Return what ``make`` gave, now or earlier."""
        if name not in self.kept:
            self.kept[name] = await make()
            if self._file is not None:
                self._file.write_text(json.dumps(self.kept))
        return self.kept[name]
