"""The option by which a step of a Kubeflow pipeline is told where its outputs go."""

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmflow.job.spec_arguments import JobPlace
    from vlmflow.kfp_step.executor_input import ExecutorInput, OutputNames

_OPTION = "--executor-input"
_EMPTY = re.compile(r"--[a-z-]+=")  # and not a value that ends so


def add_executor_input(parser: argparse.ArgumentParser) -> None:
    """Declare it."""
    parser.add_argument(
        _OPTION,
        default=None,
        metavar="JSON",
        help="KFP's ExecutorInput: write the step's outputs where it says; an option that is given "
        "as --name= counts as left out then (docs/kubeflow.md)",
    )


def take_executor_input(
    options: argparse.Namespace, names: "OutputNames"
) -> "ExecutorInput | None":
    """Take it off the options; None if it was not given. Raises SpecError.

    Before anything is done: a step whose outputs are not known is not worth its work.
    """
    from vlmflow.kfp_step.executor_input import ExecutorInput

    text = options.__dict__.pop("executor_input")
    if text is None:
        return None
    executor_input = ExecutorInput.parse(text)
    executor_input.check(names)
    return executor_input


def without_empty(arguments: Sequence[str]) -> list[str]:
    """A step's arguments without those of the form `--name=`.

    A component has one list of arguments, and nothing to give for an input that was left empty.
    """
    if not any(word.partition("=")[0] == _OPTION for word in arguments):
        return list(arguments)
    return [word for word in arguments if not _EMPTY.fullmatch(word)]


def write_job_outputs(
    executor_input: "ExecutorInput", place: "JobPlace", shard: int | None
) -> None:
    """Write what became of a job, or of a shard of it, as its output says. Raises JobError."""
    from vlmflow.job import layout
    from vlmflow.job.committed import read_report, read_sealed_shard, read_success
    from vlmflow.job.errors import CountsError
    from vlmflow.job.job_file import read_json
    from vlmflow.job.store import StoreOpener
    from vlmflow.kfp_step.job_outputs import report_outputs, shard_outputs

    store = StoreOpener(place.endpoint_url).open(place.uri)
    if shard is None:
        report = read_report(store)
        if report is None:
            raise CountsError(f"{store.uri}: the job is done, but has no {layout.REPORT}")
        outputs = report_outputs(report, store.read(layout.REPORT_HTML))
    else:
        sealed, job = read_sealed_shard(store, shard), read_json(store, layout.JOB)
        if sealed is None or job is None:
            raise CountsError(f"{store.uri}: shard {shard} is done, but is not sealed")
        outputs = shard_outputs(
            store.uri,
            f"{sealed.number}/{sealed.num_shards}",
            sealed.counts(),
            identity=job["identity"],
            is_complete=read_success(store) is not None,
        )
    executor_input.write(outputs)
