"""The options of a job that say how its answers are evaluated, and the evaluator they make."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmflow.job.evaluator import Evaluator
    from vlmflow.job.loop import StopSignal
    from vlmflow.job.progress import Display
    from vlmflow.job.spec import JobSpec
    from vlmflow.job.store import StoreOpener


def add_evaluation(group: Any) -> None:
    """Declare them."""
    group.add_argument(
        "--evaluate",
        dest="evaluation.scorers",
        metavar="LIST",
        help="score the answers before the report is written, such as exact_match,anls: "
        "docs/evaluation.md lists the scorers",
    )
    group.add_argument(
        "--evaluate-by",
        dest="evaluation.slices",
        action="append",
        metavar="FIELD",
        help="tell scores by the values of this field too, such as metadata.split; may be repeated",
    )
    group.add_argument(
        "--expected-field",
        dest="evaluation.expected_field",
        metavar="FIELD",
        help="field of the manifest that holds the expected answer (default: expected)",
    )
    group.add_argument(
        "--evaluate-failed",
        dest="evaluation.failed",
        choices=("wrong", "leave-out"),
        help="what records without an answer count as (default: wrong)",
    )
    group.add_argument(
        "--judge-model",
        dest="evaluation.judge_model",
        metavar="MODEL",
        help="of the scorer `judge`: a checkpoint folder, or a URI that MLflow's judges know",
    )
    group.add_argument(
        "--judge-prompt", dest="evaluation.judge_prompt", metavar="FILE", help="what it is asked"
    )


def make_evaluator_late(
    spec: "JobSpec", opener: "StoreOpener", display: "Display", stop: "StopSignal"
) -> "Evaluator | None":
    """As `vlmflow.evaluation.phase.make_evaluator`, whose packages a job without it needs not."""
    if not spec.evaluation.scorers:
        return None
    from vlmflow.cli.evaluate import with_packages

    with_packages()
    from vlmflow.evaluation.phase import make_evaluator

    return make_evaluator(spec, opener, display, stop)
