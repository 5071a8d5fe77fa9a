"""The hook of the connection type `vlmflow`."""
