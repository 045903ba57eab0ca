"""Two task families over identifiers that follow histories."""

from __future__ import annotations

from testing.methods import CODES, Example

EXAMPLE = Example("p5", (*CODES, "method.codes.clusters=3", 'method.tasks.families=["sequential","direct"]'))
