"""Triggers: they look on, and never hold a result."""
