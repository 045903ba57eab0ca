"""Updates of trained artifacts: what is checked before one, and what the new model starts from."""
