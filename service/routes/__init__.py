"""The endpoints, one file a subject; `common` holds what they share."""
