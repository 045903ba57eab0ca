"""Ranges and choices that a search draws settings from."""
