"""The short table at the end of a run."""

from typing import IO, Any

from vlmflow.job.progress import format_seconds


def print_summary(report: dict[str, Any], out: IO[str]) -> None:
    """Print what became of a job: counts, failures by class, throughput, places."""
    counts, rates = report["counts"], report["throughput"]
    accuracy, mlflow = report["accuracy"], report["mlflow"]
    rows = [
        ("records", str(counts["records"])),
        ("succeeded", str(counts["succeeded"])),
        ("failed", str(counts["failed"])),
        ("skipped", str(counts["skipped"])),
    ]
    rows += [(f"  {name}", str(f["count"])) for name, f in report["failures"].items()]
    rows += [
        ("images/s", _number(rates["images_per_second"])),
        ("output tokens/s", _number(rates["output_tokens_per_second"])),
        ("time", format_seconds(rates["seconds"])),
    ]
    if report["cost"] is not None:
        rows.append(("cost per 1,000", _number(report["cost"]["per_1000_records"], digits=4)))
    if accuracy["exact_match"] is not None:
        matched = f"{accuracy['matched']} of {accuracy['expected']} answers"
        rows.append(("exact match", f"{accuracy['exact_match']:.1%} ({matched})"))
    evaluation = report.get("evaluation")
    if evaluation is not None:
        rows += [(name, _score(score)) for name, score in evaluation.get("scores", {}).items()]
        rows.append(("evaluation", evaluation.get("evaluation") or f"none: {evaluation['error']}"))
    rows += [
        ("results", report["results"]["results"]),
        ("failures", report["results"]["failures"]),
        ("report", report["results"]["report"]),
        ("  to read", report["results"]["report_html"]),
    ]
    if "outputs" in report["results"]:
        rows.append(("outputs", report["results"]["outputs"]))
    if mlflow is not None:
        rows.append(("MLflow run", mlflow.get("run_id") or f"none: {mlflow['error']}"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}", file=out)


def _score(score: dict[str, Any]) -> str:
    if score["mean"] is None:
        return "-"
    interval = f"{score['low']:.4f} to {score['high']:.4f}"
    return f"{score['mean']:.4f} ({interval}, {score['scored']:,} scored)"


def _number(value: float | None, *, digits: int = 1) -> str:
    return f"{value:,.{digits}f}" if value is not None else "-"
