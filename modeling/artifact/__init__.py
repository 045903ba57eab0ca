"""The artifact folder: manifest, hashes, atomic writes."""
