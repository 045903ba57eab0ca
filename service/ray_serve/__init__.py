"""The service on Ray Serve: an ingress with the engine, replicas that encode, and shards of the index."""
