"""A browser and a server for the tests of the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.browser import NAMES, Browser, find_browser
from testing.running import Process, process


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip(f"needs one of {', '.join(NAMES)} on the PATH (on Debian: apt-get install chromium)")
    with Browser(program, tmp_path / "profile") as started:
        yield started


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with process(tmp_path_factory.mktemp("server")) as started:
        yield started
