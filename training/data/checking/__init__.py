"""Check of a data set and of the rows that would be lost: `check_folder`."""

from __future__ import annotations

from training.data.checking.check import Check, check_folder

__all__ = ["Check", "check_folder"]
