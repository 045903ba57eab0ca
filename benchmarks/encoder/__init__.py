"""The encoder's forward pass."""
