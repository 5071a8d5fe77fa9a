"""`vlmflow track`: send MLflow what it did not take while a job ran."""

import argparse

from vlmflow.cli.job_options import job_values
from vlmflow.cli.tracking_options import add_tracking

_EXAMPLE = """example:
  vlmflow track --replay s3://data/results/manifest

Done twice, it does no harm. docs/mlflow.md says what is kept, where, and for how long.
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "track",
        help="send MLflow what it did not take while a job ran",
        description="Send the metrics and the run page of a job that the tracking server did not "
        "take, from the job's own output.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(handler=track)
    parser.add_argument(
        "--replay", required=True, metavar="OUTPUT", help="the job's folder, OUTPUT/NAME of `run`"
    )
    parser.add_argument(
        "--whole",
        action="store_true",
        help="send the whole run page even if nothing is lacking: to another server, or of a job "
        "that ran with --no-mlflow",
    )
    parser.add_argument("--endpoint-url", metavar="URL", help="of an S3 store other than AWS")
    group = parser.add_argument_group("tracking")
    add_tracking(group)


def track(options: argparse.Namespace) -> int:
    """Carry the subcommand out. Raises VlmflowError."""
    from vlmflow.job.progress import make_display
    from vlmflow.job.replay import replay_job

    values = job_values(options)
    uri, is_whole = values.pop("replay"), values.pop("whole", False)
    display = make_display()
    try:
        reference = replay_job(uri, values, is_whole=is_whole, display=display)
    finally:
        display.close()
    if reference is None:
        print("nothing is lacking in MLflow; --whole sends all of it again")
    else:
        print(f"MLflow run {reference['run_id']} of {reference['tracking_uri']} is complete")
    return 0
