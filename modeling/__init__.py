"""Code that training and serving must share: prompt, backbone, adapter, pooling, projector, item tower, artifact.

This package imports nothing else of ours, so both halves of the application can rely on it.
"""
