"""Neighbours of users and items in the space of a frozen language model, and the losses that they are positives of."""
