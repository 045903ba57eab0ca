"""Caches of user vectors and answers: in memory, and shared between replicas through Redis."""
