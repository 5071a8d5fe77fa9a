"""`vlmflow spec`: print the JobSpec that options make."""

import argparse

from vlmflow.cli.job_options import add_job_options, parse_spec


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "spec",
        help="print a job as JSON, for --spec",
        description="Check the options and print the whole JobSpec, defaults included, in the one "
        "form that command line, operator and component share.",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(handler=spec)
    add_job_options(parser)


def spec(options: argparse.Namespace) -> int:
    """Carry the subcommand out. Raises SpecError."""
    print(parse_spec(options).canonical_json())
    return 0
