"""Training of each method."""
