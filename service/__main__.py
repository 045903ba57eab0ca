"""`python -m service`; see `service.cli`."""

from __future__ import annotations

from service.cli import app

app(prog_name="python -m service")
