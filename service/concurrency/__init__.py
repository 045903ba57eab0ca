"""Work on other threads: bounded, and left behind where it never ends."""
