"""The training loop: examples, trainer, checkpoints, weight averaging."""
