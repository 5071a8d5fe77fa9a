"""`vlmflow merge`: write results and report of a job whose shards are all done."""

import argparse
import sys
from typing import Any

from vlmflow.cli.evaluation_options import make_evaluator_late
from vlmflow.cli.executor_options import (
    add_executor_input,
    take_executor_input,
    write_job_outputs,
)
from vlmflow.cli.job_options import job_values, parse_spec
from vlmflow.cli.signals import handling_signals
from vlmflow.cli.tracking_options import add_tracking


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "merge",
        help="write the results and the report of a job done in shards",
        description="Check that every shard of a job is done, then write results/, failures/, the "
        "report and _SUCCESS.json. The last worker does this by itself; done twice, it does no "
        "harm.",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(handler=merge)
    parser.add_argument("--output", metavar="URI", help="as given to `run`")
    parser.add_argument("--name", help="the job's folder below the output")
    parser.add_argument("--spec", metavar="FILE", help="the job's, as given to `run`, for both")
    parser.add_argument("--endpoint-url", metavar="URL", help="of an S3 store other than AWS")
    add_executor_input(parser)
    add_tracking(parser.add_argument_group("tracking"))


def merge(options: argparse.Namespace) -> int:
    """Carry the subcommand out. Raises VlmflowError."""
    from vlmflow.cli.summary import print_summary
    from vlmflow.job.loop import StopSignal
    from vlmflow.job.merge import merge_job
    from vlmflow.job.progress import make_display
    from vlmflow.job.spec_arguments import JobPlace
    from vlmflow.kfp_step.job_outputs import JOB_NAMES

    executor_input = take_executor_input(options, JOB_NAMES)
    values = _values(options)
    stop = StopSignal()
    display = make_display()
    try:
        with handling_signals(stop):
            report = merge_job(
                values,
                display=display,
                stop=stop,
                make_evaluator=make_evaluator_late,
            )
    finally:
        display.close()
    print_summary(report, sys.stdout)
    if executor_input is not None:
        uri = f"{values['output'].rstrip('/')}/{values['name']}"
        write_job_outputs(executor_input, JobPlace(uri, values.get("endpoint_url")), None)
    return 0


def _values(options: argparse.Namespace) -> dict[str, Any]:
    """What `merge_job` wants. Raises SpecError."""
    from vlmflow.job.errors import SpecError

    given = job_values(options)
    if "spec" in given:
        spec = parse_spec(options)
        values = {"output": spec.output, "name": spec.name, "tracking": spec.tracking.model_dump()}
        return values | {"endpoint_url": spec.endpoint_url}
    missing = [f"--{name}" for name in ("output", "name") if name not in given]
    if missing:
        raise SpecError(f"{' and '.join(missing)} must be given, or the job's --spec")
    return given
