"""Losses over user vectors and item vectors; none of them knows a model."""
