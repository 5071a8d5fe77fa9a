"""What a plan, a shard and a finished job leave as outputs of a step."""

import json
from typing import Any

from vlmflow.kfp_step.executor_input import Artifact, OutputNames, StepOutputs
from vlmflow.kfp_step.markdown import number, page, table

PLAN_NAMES = OutputNames(
    frozenset(
        {
            "spec",
            "shards",
            "shard_count",
            "records",
            "manifest_sha256",
            "job_name",
            "job_uri",
            "endpoint_url",
            "mlflow_uri",
        }
    ),
    frozenset({"summary"}),
)
JOB_NAMES = OutputNames(
    frozenset(
        {
            "records",
            "succeeded",
            "failed",
            "skipped",
            "is_complete",
            "job_uri",
            "results_uri",
            "failures_uri",
            "report_uri",
            "mlflow_run_id",
        }
    ),
    frozenset({"results", "metrics", "report", "summary"}),
)


def plan_outputs(plan: dict[str, Any], shards: list[str], spec_json: str) -> StepOutputs:
    """Of what `plan_job` returned, the shards to do, and the spec that all steps get."""
    name, spec = plan["job"].rpartition("/")[2], json.loads(spec_json)
    rows = [
        ("manifest", plan["manifest"]),
        ("sha256", plan["sha256"]),
        ("records", plan["num_records"]),
        ("set aside", plan["set_aside"]),
        ("shards", len(plan["shards"])),
        ("output", plan["job"]),
    ]
    return StepOutputs(
        {
            "spec": spec_json,
            "shards": shards,
            "shard_count": len(plan["shards"]),
            "records": plan["num_records"],
            "manifest_sha256": plan["sha256"],
            "job_name": name,
            "job_uri": plan["job"],
            "endpoint_url": spec["endpoint_url"] or "",
            "mlflow_uri": spec["tracking"]["uri"] or "",
        },
        {"summary": Artifact(content=page(f"Plan of {name}", table(("", ""), rows)))},
    )


def report_outputs(report: dict[str, Any], report_page: bytes | None) -> StepOutputs:
    """Of a job that is done: report.json, and the page that people read."""
    counts, places, job = report["counts"], report["results"], report["job"]
    mlflow_run = (report["mlflow"] or {}).get("run_id") or ""
    told = {
        "display_name": job["name"],
        "identity": job["identity"],
        "manifest_sha256": report["manifest"]["sha256"],
        "model": job["model"],
        "mlflow_run_id": mlflow_run,
        "report_uri": places["report"],
        **counts,
    }
    return StepOutputs(
        {
            **{name: counts[name] for name in ("records", "succeeded", "failed", "skipped")},
            "is_complete": True,
            "job_uri": report["store"]["uri"],
            "results_uri": places["results"],
            "failures_uri": places["failures"],
            "report_uri": places["report"],
            "mlflow_run_id": mlflow_run,
        },
        {
            "results": Artifact(told, uri=places["results"]),
            "metrics": Artifact(_numbers(_job_metrics(report))),
            "report": Artifact({"display_name": "report"}, report_page),
            "summary": Artifact(content=_job_summary(report)),
        },
    )


def shard_outputs(
    job_uri: str, shard: str, counts: dict[str, int], *, identity: str, is_complete: bool
) -> StepOutputs:
    """Of a shard that is sealed. `is_complete` says whether the whole job is."""
    places = {name: f"{job_uri}/{name}" for name in ("results/", "failures/", "report.json")}
    rows = [(name, counts[name]) for name in ("records", "succeeded", "failed", "skipped")]
    told = {"display_name": f"shard {shard}", "identity": identity, "shard": shard, **counts}
    return StepOutputs(
        {
            **counts,
            "is_complete": is_complete,
            "job_uri": job_uri,
            "results_uri": places["results/"],
            "failures_uri": places["failures/"],
            "report_uri": places["report.json"],
            "mlflow_run_id": "",
        },
        {
            "results": Artifact(told, uri=places["results/"]),
            "metrics": Artifact(_numbers(counts)),
            "report": Artifact({"display_name": "none: a shard has no report"}),
            "summary": Artifact(content=page(f"Shard {shard}", table(("", ""), rows))),
        },
    )


def _job_metrics(report: dict[str, Any]) -> dict[str, Any]:
    scores = (report.get("evaluation") or {}).get("scores", {})
    return {
        **report["counts"],
        **{name: report["throughput"][name] for name in _RATES},
        "exact_match": report["accuracy"]["exact_match"],
        **{f"eval_{name}": score["mean"] for name, score in scores.items()},
    }


_RATES = ("seconds", "images_per_second", "output_tokens_per_second")


def _job_summary(report: dict[str, Any]) -> bytes:
    counts, rates = report["counts"], report["throughput"]
    rows = [(name, counts[name]) for name in ("records", "succeeded", "failed", "skipped")]
    rows += [(name.replace("_", " "), number(rates[name], 1)) for name in _RATES]
    rows += [(name, uri) for name, uri in report["results"].items()]
    failures = [
        (name, failure["count"], failure["examples"][0]["message"][:200])
        for name, failure in report["failures"].items()
    ]
    told = table(("failure", "records", "such as"), failures) if failures else ""
    return page(report["job"]["name"], table(("", ""), rows), told)


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """A Metrics artifact has numbers only: KFP's UI draws no other, and a launcher may fail."""
    return {name: value for name, value in values.items() if value is not None}
