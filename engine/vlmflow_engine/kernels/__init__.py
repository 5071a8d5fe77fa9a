"""One op a file: the fast kernels and, beside each, its reference in plain torch."""
