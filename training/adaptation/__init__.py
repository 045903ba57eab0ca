"""Stages that change a language model before the user encoder is trained on it; each leaves a backbone of its own."""
