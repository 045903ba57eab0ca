"""Behaviour under faults: lost replicas, failing stores, swaps, malformed requests."""
