"""Generation: beam search, constraints, item tokenizers."""
