"""Compares two runs, and asks a gate of them."""
