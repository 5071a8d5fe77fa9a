"""What a job's end means for a task, and what is told of it in the task's XCom."""

import json
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from vlmflow.job.errors import EXIT_BAD_INPUT, EXIT_COMPLETE, EXIT_FAILURES

if TYPE_CHECKING:
    from vlmflow.airflow.process import Ended
    from vlmflow.job.committed import SealedShard

MAX_SUMMARY_BYTES = 4096
_MAX_CLASSES = 8
_NOT_INSTALLED = "No module named vlmflow"  # of a Python's own, before anything of ours runs
_DROPPED_FIRST = ("scores", "failures", "throughput", "report_html", "failures_uri", "clauses")


def check_exit(ended: "Ended", report: dict[str, Any] | None) -> None:
    """Raise what a task shall end with, unless the code is 0 or not known.

    2 is for ever; 3 is too, with the classes of failure; all others may be tried again, but for an
    interpreter that has no vlmflow.
    """
    code = ended.code
    if code in (EXIT_COMPLETE, None):
        return
    if code == EXIT_BAD_INPUT:
        raise AirflowFailException(f"{ended.reason} (exit code 2: a retry would not help)")
    if code == EXIT_FAILURES:
        told = f"; {taxonomy(report)}" if report is not None else ""
        raise AirflowFailException(f"{ended.reason}{told} (exit code 3)")
    if ended.reason.endswith(_NOT_INSTALLED):
        raise AirflowFailException(
            f"{ended.reason}; give python=, or in the vlmflow connection, the interpreter of an "
            "environment with vlmflow[engine,job]"
        )
    raise AirflowException(f"{ended.reason} (exit code {code}); a retry goes on where it stopped")


def output_of(ended: "Ended") -> Any:
    """What a subcommand printed as JSON. Raises AirflowFailException if that was something else."""
    try:
        return json.loads(ended.output)
    except ValueError:
        raise AirflowFailException(
            f"exit code {ended.code}, but what it printed is no JSON: {ended.output[:200]!r}; look "
            "at what python= names"
        ) from None


def taxonomy(report: dict[str, Any]) -> str:
    """The classes of failure, most frequent first, with counts, stages and an example each."""
    counts = report["counts"]
    failures = sorted(report["failures"].items(), key=lambda item: -item[1]["count"])
    told = [
        f"{name} {failure['count']} ({', '.join(failure['stages'])}; such as "
        f"{failure['examples'][0]['id']}: {failure['examples'][0]['message'][:200]})"
        for name, failure in failures[:_MAX_CLASSES]
    ]
    if len(failures) > _MAX_CLASSES:
        told.append(f"and {len(failures) - _MAX_CLASSES} classes more")
    return (
        f"{counts['failed']} of {counts['records']} records failed, {counts['skipped']} were "
        f"skipped: {'; '.join(told) or 'none'}; see {report['results']['failures']}"
    )


def summarise_report(report: dict[str, Any], *, digest: str | None) -> dict[str, Any]:
    """What of a report is pushed as XCom, below 4 KB."""
    places, mlflow = report["results"], report["mlflow"] or {}
    summary = {
        "job": report["store"]["uri"],
        "name": report["job"]["name"],
        "identity": report["job"]["identity"],
        "results": places["results"],
        "failures_uri": places["failures"],
        "report": places["report"],
        "report_html": places["report_html"],
        "counts": report["counts"],
        "failures": {
            name: failure["count"]
            for name, failure in sorted(
                report["failures"].items(), key=lambda item: -item[1]["count"]
            )[:_MAX_CLASSES]
        },
        "digest": digest,
        "throughput": report["throughput"],
        "mlflow_run_id": mlflow.get("run_id"),
        "exact_match": report["accuracy"]["exact_match"],
        "scores": {
            name: score["mean"]
            for name, score in (report.get("evaluation") or {}).get("scores", {}).items()
        },
    }
    return below_limit(summary)


def summarise_shard(job_uri: str, shard: "SealedShard", *, is_job_done: bool) -> dict[str, Any]:
    """What is pushed of one shard."""
    return {
        "job": job_uri,
        "shard": f"{shard.number}/{shard.num_shards}",
        "counts": shard.counts(),
        "is_job_done": is_job_done,
    }


def below_limit(summary: dict[str, Any]) -> dict[str, Any]:
    """Leave out what can be read in the report, until it is short enough."""
    for name in _DROPPED_FIRST:
        if len(json.dumps(summary).encode()) < MAX_SUMMARY_BYTES:
            break
        summary = {key: value for key, value in summary.items() if key != name}
    return summary
