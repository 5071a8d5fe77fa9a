"""`vlmflow plan`: read a manifest and cut it into shards."""

import argparse
import json

from vlmflow.cli.executor_options import add_executor_input, take_executor_input
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
    add_executor_input(parser)
    add_job_options(parser)


def plan(options: argparse.Namespace) -> int:
    """Carry the subcommand out. Raises VlmflowError."""
    from vlmflow.job.planning import plan_job, shards_to_do
    from vlmflow.job.shown import spec_for_pipeline
    from vlmflow.kfp_step.job_outputs import PLAN_NAMES, plan_outputs

    executor_input = take_executor_input(options, PLAN_NAMES)
    spec = parse_spec(options)
    # Before the manifest is read: a pipeline shows its parameters to all who may see the run.
    text = spec_for_pipeline(spec) if executor_input is not None else ""
    plan = plan_job(spec)
    print(json.dumps(plan, indent=1))
    if executor_input is not None:
        executor_input.write(plan_outputs(plan, shards_to_do(plan), text))
    return 0
