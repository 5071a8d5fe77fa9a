"""Puts a job that was done in shards together."""
