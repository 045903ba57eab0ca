"""Indexes over tables instead of vectors."""
