"""The command line: one file a subcommand."""


def main() -> int:
    return 0
