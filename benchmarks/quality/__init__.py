"""Training speed, ablations, offline against online answers."""
