"""Who is computed next, where its KV lies, which images are encoded. Pure Python, no torch."""
