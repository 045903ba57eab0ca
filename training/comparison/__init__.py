"""``training compare``: trains what is missing, asks every model the same questions and writes one report."""
