"""The command line: one file a subcommand, each imported when it is the one that is run."""

from vlmflow.cli.main import main

__all__ = ["main"]
