"""Settings of the machine the tests run on must not reach them; logs are plain lines."""

from __future__ import annotations

import os
import signal

import pytest
import structlog


@pytest.fixture(autouse=True, scope="session")
def plain_logs() -> None:
    # The default renders every traceback in colours, which takes longer than most tests.
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()])


@pytest.fixture(autouse=True, scope="session")
def signals_reach_processes() -> None:
    # A runner started by nohup ignores SIGHUP, and so would every process that a test starts.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("ANYO_")]:
        monkeypatch.delenv(name)
    # Many tests stop "the device" with one request on it, so that others queue up: one lane unless a test says more.
    monkeypatch.setenv("ANYO_LANES", "1")
