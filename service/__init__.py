"""The service: answers `POST /recommend` from an artifact, over HTTP."""
