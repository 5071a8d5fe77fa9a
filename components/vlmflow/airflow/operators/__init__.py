"""Operators: each declares, and runs the same command line as everybody."""
