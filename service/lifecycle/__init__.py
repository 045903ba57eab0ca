"""Loaded artifacts: load, check, warm up, swap, unload."""
