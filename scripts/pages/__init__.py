"""Tables and plots of the documentation, generated from the results in `benchmarks/results`."""
