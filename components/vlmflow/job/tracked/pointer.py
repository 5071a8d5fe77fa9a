"""Where results are that are too many for MLflow, and how to know them again."""

from typing import Any

from vlmflow.job import layout
from vlmflow.job.job_file import read_json
from vlmflow.job.results import digest_of_views
from vlmflow.job.store import Store


def results_pointer(store: Store, report: dict[str, Any]) -> dict[str, Any]:
    """URIs, counts, bytes and digests of the files below results/ and failures/."""
    views = read_json(store, layout.VIEWS) or {}
    files = [{"uri": f"{store.uri}/{key}", **about} for key, about in sorted(views.items())]
    counts = report["counts"]
    return {
        "schema_version": 1,
        "results": report["results"]["results"],
        "failures": report["results"]["failures"],
        **{name: counts[name] for name in ("records", "succeeded", "failed", "skipped")},
        "num_bytes": sum(about["num_bytes"] for about in views.values()),
        "sha256": digest_of_views(views) if views else None,
        "files": files,
    }
