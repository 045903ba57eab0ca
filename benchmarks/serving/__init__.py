"""The service against other serving frameworks."""
