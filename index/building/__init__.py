"""Built on top of the indexes: large indexes in parts, and the choice of an effort."""
