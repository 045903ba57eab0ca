"""Shared by the benchmarks: load generators, servers, model shapes, plots."""
