"""The file of an inverted file: plain arrays, written part by part and checked before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index.base import Content, FloatArray, FolderEntry
from index.faiss_calls import HEADER, Bytes, write_array


@dataclass(frozen=True)
class Trained:
    """The part of an inverted file that is trained.

    Attributes:
        magic: four bytes that name the kind.
        centres_CD: centres of the cells.
        tables: tables of the codes, flat.
    """

    magic: bytes
    centres_CD: FloatArray
    tables: FloatArray


def write_file(
    path: Path,
    trained: Trained,
    size: int,
    code_size: int,
    cells: Iterable[Any],
    codes: Iterable[Any],
    vectors: Iterable[FloatArray],
) -> None:
    """Write the file of an inverted file; only one part at a time is in memory.

    Args:
        path: of the file.
        trained: centres and tables.
        size: N, the number of items.
        code_size: bytes of a code.
        cells: the cell of every row in parts, int32, N in all.
        codes: its code in parts, uint8 [.., code_size].
        vectors: its vector in parts, float32 [.., D].
    """
    dim = trained.centres_CD.shape[1]
    with path.open("wb") as file:
        file.write(HEADER.pack(trained.magic, dim, size, 0, 0, True, 0))
        write_array(file, trained.centres_CD)
        write_array(file, trained.tables)
        write_array(file, cells, length=size)
        write_array(file, codes, length=size * code_size)
        write_array(file, vectors, length=size * dim)


class Arrays:
    """The arrays of a file that may be hostile, read in their order: `begin`, then `rest`."""

    def __init__(self, content: Content, path: Path, entry: FolderEntry, magic: bytes, cells: int) -> None:
        """Read centres, tables and cells; raises `IndexFolderError`.

        Args:
            content: bytes of the file.
            path: where they were read from, for messages.
            entry: what they must be.
            magic: four bytes that name the kind.
            cells: C, the number of cells.
        """
        self.file, self._entry = Bytes(content, path, entry), entry
        self.file.header(magic)
        self.centres_CD = np.ascontiguousarray(self.file.array("<f4", cells * entry.dim).reshape(cells, entry.dim))
        self.tables = np.ascontiguousarray(self.file.array("<f4"))
        self.cells_N = self.file.array("<i4", entry.size)
        if not np.isfinite(self.centres_CD).all() or not np.isfinite(self.tables).all():
            raise self.file.error("a centre or a table that is not finite")
        if not ((self.cells_N >= 0) & (self.cells_N < cells)).all():
            raise self.file.error("an item in a cell that is not there")

    def rest(self, code_size: int) -> tuple[Any, Any]:
        """Codes [N, code_size] and vectors [N, D], which end the file; raises `IndexFolderError`."""
        size, dim = self._entry.size, self._entry.dim
        codes_NB = self.file.array("<u1", size * code_size).reshape(size, code_size)
        vectors_ND = self.file.array("<f4", size * dim).reshape(size, dim)
        left = len(self.file.content) - self.file.place
        if left:
            raise self.file.error(f"{left} bytes after its vectors")
        return codes_NB, vectors_ND
