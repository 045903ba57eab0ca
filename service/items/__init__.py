"""Items that change while the service runs: what an artifact makes of a change, and how changes come to all of them."""
