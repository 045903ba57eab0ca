"""What a search may draw settings from."""
