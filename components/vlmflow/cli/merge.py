"""`vlmflow merge`: write results and report of a job whose shards are all done."""

import argparse
import sys

from vlmflow.cli.evaluation_options import make_evaluator_late
from vlmflow.cli.job_options import job_values
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
    parser.add_argument("--output", required=True, metavar="URI", help="as given to `run`")
    parser.add_argument("--name", required=True, help="the job's folder below the output")
    parser.add_argument("--endpoint-url", metavar="URL", help="of an S3 store other than AWS")
    add_tracking(parser.add_argument_group("tracking"))


def merge(options: argparse.Namespace) -> int:
    """Carry the subcommand out. Raises VlmflowError."""
    from vlmflow.cli.summary import print_summary
    from vlmflow.job.loop import StopSignal
    from vlmflow.job.merge import merge_job
    from vlmflow.job.progress import make_display

    stop = StopSignal()
    display = make_display()
    try:
        with handling_signals(stop):
            report = merge_job(
                job_values(options),
                display=display,
                stop=stop,
                make_evaluator=make_evaluator_late,
            )
    finally:
        display.close()
    print_summary(report, sys.stdout)
    return 0
