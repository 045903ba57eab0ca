"""`python -m index`."""

from __future__ import annotations

from index.cli import app

app(prog_name="python -m index")
