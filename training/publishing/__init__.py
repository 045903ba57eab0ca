"""Publishing of an artifact: its model card, and its way to a hub."""
