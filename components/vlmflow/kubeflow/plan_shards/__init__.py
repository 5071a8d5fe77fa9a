"""Cuts a manifest into shards."""
