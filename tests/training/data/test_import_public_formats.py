"""Public data sets, each in small as its files are laid out: imported without a script."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from testing.sources.public_formats import LAYOUTS, Layout, amazon_m2
from training.data import DataError, read_dataset
from training.data.importing import ImportOptions, import_data, parse_map
from training.data.importing.cells import as_lists


def written(layout: Layout, where: Path) -> Path:
    for path, content in layout.files.items():
        (where / path).parent.mkdir(parents=True, exist_ok=True)
        (where / path).write_bytes(content.encode() if isinstance(content, str) else content)
    return where


def taken(folder: Path, layout: Layout) -> dict[str, list[str]]:
    data = read_dataset(folder)
    shown = data.titles if layout.titles else data.item_ids
    assert (
        data.items.height == len({row for at in range(len(data.user_ids)) for row in data.sequence(at)}) + layout.more
    )
    return {user: [shown[row] for row in data.sequence(at)] for at, user in enumerate(data.user_ids)}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_public_layout_is_imported(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]()
    source = written(layout, tmp_path / "source")
    asked: list[str] = []

    def confirm(_: str, doubts: Sequence[str]) -> bool:
        asked.extend(doubts)
        return True

    import_data([source], tmp_path / "out", ImportOptions(**layout.options), confirm)  # type: ignore[arg-type]
    assert taken(tmp_path / "out", layout) == layout.expected()
    assert len(asked) == layout.asks, asked


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout().asks])
def test_what_is_asked_can_be_said_by_the_options_that_the_refusal_names(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]()
    source = written(layout, tmp_path / "source")

    def certain(_: str, doubts: Sequence[str]) -> bool:
        return not doubts

    with pytest.raises(DataError) as refused:
        import_data([source], tmp_path / "out", ImportOptions(**layout.options), certain)  # type: ignore[arg-type]
    typed = shlex.split(re.search(r"to say what is what: (--map .*)$", str(refused.value))[1])  # type: ignore[index]
    columns = parse_map([word for word in typed if word != "--map"])
    options = ImportOptions(**{**layout.options, "columns": columns})  # type: ignore[arg-type]
    import_data([source], tmp_path / "out", options, certain)
    assert taken(tmp_path / "out", layout) == layout.expected()


def test_sessions_of_several_files_are_told_apart_by_the_file(tmp_path: Path) -> None:
    source = written(amazon_m2(), tmp_path / "source")
    (source / "sessions_more.csv").write_bytes((source / "sessions_train.csv").read_bytes())
    import_data([source], tmp_path / "out", ImportOptions(), lambda _, doubts: bool(doubts))
    data = read_dataset(tmp_path / "out")
    assert len(data.user_ids) == 40
    assert {"sessions_more.csv", "sessions_train.csv"} == {re.sub(r"^.*/|:\d+$", "", user) for user in data.user_ids}


def test_lists_are_read_as_they_are_printed() -> None:
    printed = ["['a b', 'c']", "['a b'\n 'c']", "['a b']", "[12  3\n 45]", "[12]", "[12, 3]", "(a, b)"]
    read = as_lists(pl.Series("item", printed))
    assert read is not None
    assert read.to_list() == [
        ["a b", "c"], ["a b", "c"], ["a b"], ["12", "3", "45"], ["12"], ["12", "3"], ["a", "b"],
    ]  # fmt: skip
