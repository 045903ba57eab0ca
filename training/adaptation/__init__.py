"""Stages before the main training of a dense recipe: those that adapt its language model, and the warm-up of items."""
