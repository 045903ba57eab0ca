"""From a request to recommended items, for dense and generative artifacts."""
