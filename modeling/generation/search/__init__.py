"""The parts of beam search; `modeling.generation.beam_search` is what others import."""
