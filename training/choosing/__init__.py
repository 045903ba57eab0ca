"""The choice of a recipe for a data set: candidates by rules, the best of them on validation."""
