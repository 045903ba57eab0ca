"""Candidates from a Qdrant server: the engine proposes rows, and exact scores and every rule are applied here.

The vectors of an artifact stay in its mapped file. A collection of the engine holds a copy of them with the attributes
of the items, so that a filter narrows the engine's own search. What the engine answers is looked at again: rows that
may not be answered with are dropped, scores are computed from the file, and what is missing is found by exact search.

Source of the API: qdrant-client 1.20 (https://python-client.qdrant.tech), which is an extra and may be missing.
"""
