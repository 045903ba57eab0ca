"""Generation: beam search, dense against generative, hallucinated titles."""
