"""Our engine behind the operators of others."""
