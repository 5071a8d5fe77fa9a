"""Scores the answers of a job."""
