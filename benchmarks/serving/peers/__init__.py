"""Other serving frameworks around the same model, each as its own documentation teaches and once tuned.

`benchmarks.serving.compare` runs them in environments of their own (`make peers`), where nothing of ours is
installed: of this repository they import this package only.
"""
