"""Inverted files: items lie in cells, a search reads the codes of a few cells and scores the best of them exactly."""
