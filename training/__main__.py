"""``python -m training``."""

import os

# Read when torch's thread pool is loaded, so it stands before every import that brings torch: threads that wait for
# each other sleep instead of spinning, which is many times faster on a machine that is also used for something else.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from training.cli import app

if __name__ == "__main__":
    app(prog_name="python -m training")
