"""Shared by tests and benchmarks: fakes, real servers, small data sets."""
