"""`vlmflow compare`: two runs side by side, and a gate between them."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vlmflow.cli.evaluate import add_counting, counting, with_packages
from vlmflow.cli.executor_options import add_executor_input, take_executor_input

if TYPE_CHECKING:
    from vlmflow.evaluation.results import Results

_EXAMPLE = """example:
  vlmflow compare s3://data/results/last-week s3://data/results/today \\
      --by metadata.task --html compare.html \\
      --gate "accuracy >= -0.01 and images_per_second >= 0.95x"

A run is a job's output, its results/, a results.parquet, or an MLflow run (runs:/ID). In a gate a
plain number is compared with B's value, a signed one with B's less A's, and 0.95x is so many times
A's; `accuracy` is the first scorer.

exit codes:
  0   the gate is passed, or there is none
  2   an option, a run or the gate is not right
  3   the gate is not passed, unless --soft-gate
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "compare",
        help="compare two runs record by record",
        description="Pair the records of two runs by id and tell which run is better, how surely, "
        "where, how fast and at what cost.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=compare)
    parser.add_argument("run_a", metavar="RUN_A", help="the old run")
    parser.add_argument("run_b", metavar="RUN_B", help="the new run")
    parser.add_argument(
        "--scorers", metavar="LIST", help="(default: those of the runs, else exact_match)"
    )
    add_counting(parser)
    parser.add_argument("--gate", metavar="GATE", help="end with 3 unless this holds")
    parser.add_argument(
        "--soft-gate",
        action="store_true",
        help="end with 0 whether the gate is passed or not; what is printed says which",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", metavar="FILE", help="write one page for people")
    parser.add_argument("--mlflow-uri", metavar="URI", help="tracking server or database")
    parser.add_argument(
        "--track",
        metavar="RUN",
        nargs="?",
        const="",
        help="log the comparison to this MLflow run (default: one of its own)",
    )
    parser.add_argument(
        "--experiment", default="vlmflow", metavar="NAME", help="of that run (default: vlmflow)"
    )
    add_executor_input(parser)


def compare(options: argparse.Namespace) -> int:
    """Carry the subcommand out. Raises VlmflowError."""
    from vlmflow.kfp_step.score_outputs import COMPARISON_NAMES, comparison_outputs

    executor_input = take_executor_input(options, COMPARISON_NAMES)
    with_packages()
    from vlmflow.evaluation.compare import Comparer
    from vlmflow.evaluation.compare_page import render_comparison
    from vlmflow.evaluation.evaluate import EvaluationOptions
    from vlmflow.evaluation.gate import ALIAS, check_metrics, parse_gate
    from vlmflow.evaluation.performance import NAMES
    from vlmflow.evaluation.questions_of import questions_of
    from vlmflow.evaluation.results import ResultsOpener
    from vlmflow.evaluation.run_scores import RunScores
    from vlmflow.evaluation.scorers import make_scorers
    from vlmflow.evaluation.scorers.parse import parse_scorers
    from vlmflow.evaluation.stored_judge import stored_judge
    from vlmflow.evaluation.terminal import print_comparison
    from vlmflow.evaluation.thumbnails import thumbnails
    from vlmflow.evaluation.track import fetcher_of
    from vlmflow.job.errors import EXIT_COMPLETE, EXIT_FAILURES
    from vlmflow.job.store import StoreOpener

    # A typo is told before a million answers are read.
    gate = (parse_gate(options.gate), options.gate) if options.gate is not None else None
    counted = EvaluationOptions(**counting(options))
    opener = StoreOpener(options.endpoint_url)
    with ResultsOpener(opener, options.mlflow_uri) as results_opener:
        # A pipeline's first run has nothing to be compared with, and a component no way to say so.
        run_a = options.run_a or options.run_b
        runs = [results_opener.open(name) for name in (run_a, options.run_b)]
        wanted = options.scorers or _scorers_of(runs)
        if gate is not None:
            names = [wording.name for wording in parse_scorers(wanted)]
            check_metrics(gate[0], [*names, ALIAS, *NAMES])
        a, b = (
            RunScores(run, make_scorers(wanted, judge=stored_judge(run)), counted) for run in runs
        )
        comparison = Comparer(a, b, counted).compare(
            questions_of(runs[1], opener, _say), gate=gate, say=_say
        )
        if (options.html, options.track, executor_input) != (None, None, None):
            fetcher = fetcher_of(runs[1], opener) or fetcher_of(runs[0], opener)
            asked = [item.asked for item in comparison.changed]
            pictures = thumbnails(asked, fetcher) if fetcher is not None else [None] * len(asked)
            page = render_comparison(comparison.content, pictures)
            if options.html is not None:
                Path(options.html).write_text(page, encoding="utf-8")
            if options.track is not None:
                from vlmflow.evaluation.track import track_comparison

                run_id = track_comparison(
                    comparison,
                    page,
                    pictures,
                    tracking_uri=options.mlflow_uri,
                    run_id=options.track or None,
                    experiment=options.experiment,
                )
                _say(f"logged to MLflow run {run_id}")
            if executor_input is not None:
                executor_input.write(comparison_outputs(comparison.content, page))
    if options.json:
        print(json.dumps(comparison.content, indent=1, ensure_ascii=False))
    else:
        print_comparison(comparison.content, sys.stdout)
    judged = comparison.content["gate"]
    is_passed = judged is None or judged["passed"]
    return EXIT_COMPLETE if is_passed or options.soft_gate else EXIT_FAILURES


def _scorers_of(runs: "list[Results]") -> str:
    """The scorers that the newer run was evaluated with, else the older one's."""
    for run in reversed(runs):
        if run.report is not None:
            evaluation = run.report["job"]["spec"].get("evaluation", {})
            if evaluation.get("scorers"):
                return str(evaluation["scorers"])
    return "exact_match"


def _say(message: str) -> None:
    print(message, file=sys.stderr)
