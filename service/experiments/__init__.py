"""Traffic split, shadow traffic and feedback with confidence intervals."""
