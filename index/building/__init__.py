"""What stands on top of building: large indexes in parts, and the choice of an effort."""
