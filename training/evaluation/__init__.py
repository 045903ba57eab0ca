"""Measuring: ranks into metrics, floors to compare with, the test ledger, tables."""
