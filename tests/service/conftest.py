"""Settings of the machine the tests run on must not reach them."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("ANYO_")]:
        monkeypatch.delenv(name)
