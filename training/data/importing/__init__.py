"""Other people's files into the folder format: `import_data`."""

from __future__ import annotations

from training.data.importing.joins import parse_joins
from training.data.importing.options import ImportOptions, parse_allowed, parse_core, parse_events, parse_map
from training.data.importing.pipeline import Imported, import_data
from training.data.importing.table import ReadOptions

__all__ = [
    "ImportOptions",
    "Imported",
    "ReadOptions",
    "import_data",
    "parse_allowed",
    "parse_core",
    "parse_events",
    "parse_joins",
    "parse_map",
]
