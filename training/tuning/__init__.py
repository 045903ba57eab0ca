"""Hyper-parameters: the search."""
