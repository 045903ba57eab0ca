"""Inference-only forward passes, kernels and reduced precision."""
