"""What training and serving must do identically: prompt, backbone, adapter, pooling, projector, item tower, artifact.

This package imports nothing else of ours, so both halves of the application can rely on it.
"""
