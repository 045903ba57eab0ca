"""Files that several processes make together: each is made by one of them, and all wait until the last is there.

The processes need nothing but the folder: started with the same files, on one machine or on several that share a file
system with locks, each takes the next file that is missing and that nobody makes. Files of a process that is ended are
made by another one. Imports nothing heavy.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from pathlib import Path

from index.command_line.one_writer import BeingWrittenError, one_writer

LOOK_S = 0.5  # between two looks at what others make


def parts_to_make(paths: Sequence[Path], whole: Path | None = None) -> Generator[int]:
    """Numbers of the files that this process has to make, one after the other; ends when all files are there, or when
    ``whole`` is, which is made of them.

    A file must be whole when it appears under its name (written under another one and renamed), and be there when the
    next number is asked for. Close the iterator (`contextlib.closing`): it holds the file that is being made.
    """

    def is_whole() -> bool:
        return whole is not None and whole.is_file()

    while not is_whole() and (missing := [number for number, path in enumerate(paths) if not path.is_file()]):
        made = False
        for number in missing:
            try:
                with one_writer(paths[number]):
                    if not paths[number].is_file() and not is_whole():
                        yield number
                        made = True
            except BeingWrittenError:
                continue
        if not made:
            time.sleep(LOOK_S)
