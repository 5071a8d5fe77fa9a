"""Models that run through transformers' own code, with our attention plugged in."""
