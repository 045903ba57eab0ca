"""Frozen language models in training alone: neighbours of users and items, views of histories that are written about,
and the losses that they are positives of."""
