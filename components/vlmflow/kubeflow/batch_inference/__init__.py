"""Runs a manifest, or a shard of it, through a model."""
