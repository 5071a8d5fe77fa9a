"""`vlmflow`: finds the subcommand, turns errors into a sentence and an exit code."""

import argparse
import sys

from vlmflow import __version__
from vlmflow.cli import check, compare, evaluate, log_model, merge, plan, run, spec, track
from vlmflow.cli.executor_options import without_empty
from vlmflow.command_parser import CommandParser
from vlmflow_engine.errors import VlmflowError

_EPILOGUE = """exit codes:
  0   complete
  2   an option, the manifest or the model is not right
  3   more records failed than --max-failure-rate allows, or all of them; of compare: the gate is
      not passed
  4   the engine cannot be kept alive
  75  interrupted; the same command goes on where it stopped
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    parser = CommandParser(
        prog="vlmflow",
        description="Vision-language models over a manifest of images and prompts.",
        epilog=_EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vlmflow {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (run, check, plan, merge, evaluate, compare, log_model, track, spec):
        command.add_parser(commands)
    options = parser.parse_args(without_empty(sys.argv[1:] if arguments is None else arguments))
    try:
        code: int = options.handler(options)
    except VlmflowError as error:
        print(f"vlmflow: {error}", file=sys.stderr)
        # A bare VlmflowError is one of the engine's light half, about what the user gave.
        return int(getattr(error, "exit_code", 2))
    return code
