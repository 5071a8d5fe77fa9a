"""`vlmflow plan`: read a manifest and cut it into shards."""

import argparse
import json

from vlmflow.cli.job_options import add_job_options, parse_spec


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "plan",
        help="cut a manifest into shards for several workers",
        description="Read the whole manifest, write the job's plan, and print its shards as JSON: "
        "each is what `vlmflow run --shard` takes.",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(handler=plan)
    add_job_options(parser)


def plan(options: argparse.Namespace) -> int:
    """Carry the subcommand out. Raises VlmflowError."""
    from vlmflow.job.planning import plan_job

    print(json.dumps(plan_job(parse_spec(options)), indent=1))
    return 0
