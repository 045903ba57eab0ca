"""What a data set holds and what would be lost: `check_folder`."""

from __future__ import annotations

from training.data.checking.check import Check, check_folder

__all__ = ["Check", "check_folder"]
