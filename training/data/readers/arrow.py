"""Arrow files and streams, as Feather and the folders of Hugging Face `datasets` hold them."""

from __future__ import annotations

import polars as pl

from training.data.importing.table import ReadOptions, Table
from training.data.report import DataError

PRIORITY = 1
_FILE, _STREAM = b"ARROW1", b"\xff\xff\xff\xff"


def matches(name: str, data: bytes) -> bool:
    """Whether the content begins as an Arrow file or stream does."""
    return data.startswith((_FILE, _STREAM))


def read(name: str, data: bytes, options: ReadOptions) -> list[Table]:
    """The one table of the file."""
    try:
        frame = pl.read_ipc(data) if data.startswith(_FILE) else pl.read_ipc_stream(data)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{name} cannot be read as Arrow: {str(error).splitlines()[0]}") from None
    return [Table(name, frame, "arrow")]
