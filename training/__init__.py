"""Offline half of anyo: reads interactions, trains recipes, evaluates them and writes artifacts."""
