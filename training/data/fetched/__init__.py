"""Data sets that a name stands for: fetched, or made."""
