"""Files that several processes make: what another one made or makes is not made again."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from index.command_line.one_writer import one_writer
from index.command_line.shared_parts import parts_to_make


def test_a_part_is_made_by_one_process(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(4)]
    with closing(parts_to_make(paths)) as numbers:
        assert next(numbers) == 0
        paths[0].touch()
        paths[1].touch()  # by another process, since this one looked
        with one_writer(paths[2]):
            assert next(numbers) == 3, "1 is there and 2 is being made"
            paths[3].touch()
        assert next(numbers) == 2, "whoever made it has ended"
        paths[2].touch()
        assert list(numbers) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3"]


def test_parts_are_not_made_where_the_whole_is(tmp_path: Path) -> None:
    paths, whole = [tmp_path / "0", tmp_path / "1"], tmp_path / "whole"
    with closing(parts_to_make(paths, whole)) as numbers:
        assert next(numbers) == 0
        whole.touch()
        assert list(numbers) == []
