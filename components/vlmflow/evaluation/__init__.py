"""How good the answers of a job are, and whether they are better than another job's. No torch."""
