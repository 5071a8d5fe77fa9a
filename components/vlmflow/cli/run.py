"""`vlmflow run`: run a manifest through a model."""

import argparse
import re
import sys
from typing import TYPE_CHECKING

from vlmflow.cli.evaluation_options import make_evaluator_late
from vlmflow.cli.executor_options import (
    add_executor_input,
    take_executor_input,
    write_job_outputs,
)
from vlmflow.cli.job_options import add_job_options, parse_spec
from vlmflow.cli.signals import handling_signals

if TYPE_CHECKING:
    from vlmflow.job.loop import StopSignal
    from vlmflow.job.run import Assignment
    from vlmflow.job.spec import JobSpec

_EXAMPLE = """example:
  vlmflow run --manifest s3://data/shapes/manifest.jsonl --model ./checkpoint \\
      --output s3://data/results --max-new-tokens 64

Run the same command again to go on after an interruption. Results are written below
OUTPUT/NAME/: results/, failures/, report.html, report.json, and _SUCCESS.json last.
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "run",
        help="run a manifest through a model",
        description="Run every record of a manifest through a vision-language model and commit "
        "one result for each.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(handler=run)
    part = parser.add_argument_group("part of the job")
    which = part.add_mutually_exclusive_group()
    which.add_argument(
        "--shard",
        dest="assignment.shard",
        type=_shard,
        metavar="I/N",
        help="only shard I of N, counted from 0",
    )
    which.add_argument(
        "--worker",
        dest="assignment.is_worker",
        action="store_true",
        help="do shards that nobody does, until all are done; start as many as you like",
    )
    which.add_argument(
        "--gpus",
        metavar="GPUS",
        help="a worker on each of several GPUs: all, how many, or which, such as 0,2",
    )
    part.add_argument(
        "--rerun-failed",
        dest="assignment.rerun_failed",
        action="store_true",
        help="ask the failed records of a finished job again",
    )
    part.add_argument(
        "--fork",
        dest="assignment.fork",
        action="store_true",
        help="if the output belongs to another job, take NAME-2, NAME-3, ...",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        default=False,
        help="look at the manifest and some images, as `vlmflow check` does, and stop",
    )
    add_executor_input(parser)
    add_job_options(parser)


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I below N, such as 0/4")
    return int(found[1]), int(found[2])


def run(options: argparse.Namespace) -> int:
    """Carry the subcommand out. Raises VlmflowError."""
    from vlmflow.cli.check import check_and_print
    from vlmflow.job.known_failure import check_known_failure
    from vlmflow.job.loop import StopSignal
    from vlmflow.job.run import Assignment
    from vlmflow.job.spec_arguments import JobPlace
    from vlmflow.kfp_step.job_outputs import JOB_NAMES

    executor_input = take_executor_input(options, JOB_NAMES)
    values = {
        name.partition(".")[2]: options.__dict__.pop(name)
        for name in list(vars(options))
        if name.startswith("assignment.")
    }
    if "shard" in values:
        values["shard"], options.num_shards = values["shard"]
    is_dry = options.__dict__.pop("dry_run")
    gpus = options.__dict__.pop("gpus", None)
    if is_dry:
        return check_and_print(options, num_sampled=0, as_json=False)
    spec, stop = parse_spec(options), StopSignal()
    assignment = Assignment(**values)
    if executor_input is not None:
        # KFP retries whatever the exit code: no GPU shall be held for what a retry cannot mend.
        check_known_failure(spec, assignment.shard)
    if gpus is not None:
        _run_on_gpus(spec, gpus, stop, is_plain=not values)
    else:
        _run_here(spec, assignment, stop)
    if executor_input is not None:
        write_job_outputs(executor_input, JobPlace.of(spec), assignment.shard)
    return 0


def _run_here(spec: "JobSpec", assignment: "Assignment", stop: "StopSignal") -> None:
    from vlmflow.cli.summary import print_summary
    from vlmflow.job.progress import make_display
    from vlmflow.job.run import JobRun

    display = make_display()
    try:
        with handling_signals(stop):
            run = JobRun(
                spec,
                display=display,
                stop=stop,
                assignment=assignment,
                make_evaluator=make_evaluator_late,
            )
            report = run.run()
    finally:
        display.close()
    if report is None:
        print("done with this shard; the job has others that are not done yet")
    else:
        print_summary(report, sys.stdout)


def _run_on_gpus(spec: "JobSpec", asked: str, stop: "StopSignal", *, is_plain: bool) -> None:
    from vlmflow.cli.summary import print_summary
    from vlmflow.job.committed import read_report
    from vlmflow.job.errors import SpecError
    from vlmflow.job.gpus import find_gpus, for_gpus, run_workers
    from vlmflow.job.progress import LineDisplay
    from vlmflow.job.store import StoreOpener

    if not is_plain:
        raise SpecError("--gpus does not go with --rerun-failed or --fork; run them on one GPU")
    gpus = find_gpus(asked)
    spec = for_gpus(spec, len(gpus))
    with handling_signals(stop):
        run_workers(spec, gpus, stop=stop, say=LineDisplay().say)
    report = read_report(
        StoreOpener(spec.endpoint_url).open(f"{spec.output.rstrip('/')}/{spec.name}")
    )
    assert report is not None  # a worker has seen it
    print_summary(report, sys.stdout)
