"""The user encoder: prompt, user encoder, projector, item tower."""
