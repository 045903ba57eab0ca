"""Loading artifacts, sharing their memory, pulling them from elsewhere."""
