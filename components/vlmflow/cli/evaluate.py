"""`vlmflow evaluate`: score the answers of a job."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from vlmflow.cli.executor_options import add_executor_input, take_executor_input
from vlmflow.cli.signals import handling_signals

if TYPE_CHECKING:
    from vlmflow.evaluation.request import EvaluationRequest

_EXAMPLE = """example:
  vlmflow evaluate --results s3://data/results/shapes \\
      --scorers exact_match,anls --by metadata.task

docs/evaluation.md lists the scorers.
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "evaluate",
        help="score the answers of a job",
        description="Score every answer, and write evaluation.json and evaluation.parquet beside "
        "the results.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=evaluate)
    parser.add_argument(
        "--results",
        required=True,
        metavar="URI",
        help="a job's output, its results/, a results.parquet, or an MLflow run (runs:/ID)",
    )
    parser.add_argument(
        "--scorers", default="exact_match", metavar="LIST", help="(default: exact_match)"
    )
    parser.add_argument(
        "--manifest", metavar="URI", help="of the job, or none (default: as in its report)"
    )
    add_counting(parser)
    parser.add_argument(
        "--output",
        metavar="URI",
        help="folder for evaluation.json and evaluation.parquet (default: the job's output)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_executor_input(parser)
    judge = parser.add_argument_group("judge")
    judge.add_argument(
        "--judge-model",
        metavar="MODEL",
        help="of the scorer `judge`: a checkpoint folder, or a URI of MLflow's judges such as "
        "openai:/gpt-4o",
    )
    judge.add_argument(
        "--judge-prompt",
        metavar="FILE",
        help="a text with {prompt}, {expected}, {answer} and {scale}",
    )
    judge.add_argument(
        "--judge-url", metavar="URL", help="of a server with OpenAI's interface, for such a URI"
    )
    tracking = parser.add_argument_group("tracking")
    tracking.add_argument(
        "--track",
        metavar="RUN",
        nargs="?",
        const="",
        help="log to this MLflow run (default: the one of the job's report)",
    )
    tracking.add_argument("--mlflow-uri", metavar="URI", help="tracking server or database")


def add_counting(parser: argparse.ArgumentParser) -> None:
    """Declare how scores are counted, the same for `evaluate` and `compare`."""
    parser.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="FIELD",
        help="a field by whose values scores are told too, such as metadata.split; may be repeated",
    )
    parser.add_argument(
        "--expected",
        default="expected",
        metavar="FIELD",
        help="field of the manifest that holds the expected answer (default: expected)",
    )
    parser.add_argument(
        "--failed",
        choices=("wrong", "leave-out"),
        default="wrong",
        help="what records without an answer count as (default: wrong)",
    )
    parser.add_argument(
        "--resamples",
        type=_count,
        default=2000,
        metavar="N",
        help="of the bootstrap (default: 2000)",
    )
    parser.add_argument("--endpoint-url", metavar="URL", help="of an S3 store other than AWS")


def evaluate(options: argparse.Namespace) -> int:
    """Carry the subcommand out. Raises VlmflowError."""
    from vlmflow.kfp_step.score_outputs import EVALUATION_NAMES, evaluation_outputs

    executor_input = take_executor_input(options, EVALUATION_NAMES)
    with_packages()
    from vlmflow.evaluation.results import ResultsOpener
    from vlmflow.evaluation.terminal import print_evaluation
    from vlmflow.job import layout
    from vlmflow.job.loop import StopSignal
    from vlmflow.job.progress import make_display
    from vlmflow.job.store import StoreOpener

    request = _request(options)
    request.check()
    opener, stop, display = StoreOpener(options.endpoint_url), StopSignal(), make_display()
    try:
        with ResultsOpener(opener, options.mlflow_uri) as results_opener, handling_signals(stop):
            results = results_opener.open(options.results)
            output = opener.open(options.output) if options.output else results.store
            evaluation = request.carry_out(
                results, opener, output=output, display=display, stop=stop
            )
            if options.track is not None:
                from vlmflow.evaluation.track import track_evaluation

                run = track_evaluation(
                    evaluation, results, opener, options.mlflow_uri, options.track or None
                )
                display.say(f"logged to MLflow run {run}")
    finally:
        display.close()
    if options.json:
        print(json.dumps(evaluation.content, indent=1, ensure_ascii=False))
    else:
        print_evaluation(evaluation.content, sys.stdout)
        if output is not None:
            print(f"written to {output.uri}/evaluation.json and evaluation.parquet")
    if executor_input is not None:
        uri = f"{output.uri}/{layout.EVALUATION}" if output is not None else ""
        executor_input.write(evaluation_outputs(evaluation.content, uri))
    return 0


def with_packages() -> None:
    """Raise SpecError if the packages of the extra are not there."""
    from vlmflow.job.errors import SpecError

    try:
        import numpy  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise SpecError(
            f"this needs the package {error.name!r}: pip install 'vlmflow[job,evaluation]'"
        ) from error


def counting(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_counting` declared, by the names of EvaluationOptions."""
    return {
        "slice_fields": tuple(options.by),
        "expected_field": options.expected,
        "failed": options.failed,
        "num_resamples": options.resamples,
    }


def _request(options: argparse.Namespace) -> "EvaluationRequest":
    from vlmflow.evaluation.evaluate import EvaluationOptions
    from vlmflow.evaluation.judge import JudgeModel
    from vlmflow.evaluation.request import EvaluationRequest

    judge = None
    if options.judge_model is not None:
        judge = JudgeModel(
            model=options.judge_model,
            prompt_file=options.judge_prompt,
            base_url=options.judge_url,
        )
    return EvaluationRequest(
        scorers=options.scorers,
        options=EvaluationOptions(**counting(options)),
        manifest=options.manifest,
        judge=judge,
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 100 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 100 to 100,000")
    return int(text)
