"""From what a caller writes to token ids and pixels. No torch, no transformers."""
