"""A job's results as an asset, so that what comes after is started by data and not by the clock."""

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from airflow.sdk import Asset, Context


def results_uri(job_uri: str) -> str:
    """The URI of a job's results, as an asset has it: without a slash at the end."""
    if "://" in job_uri:
        return f"{job_uri}/results"
    return f"file://{quote(str(Path(job_uri).absolute()))}/results"


def results_asset(output: str, name: str, **more: Any) -> "Asset":
    """The asset of a job's results, for `outlets` and for another DAG's `schedule`.

    :param output: as given to the job.
    :param name: the job's name, its folder below the output.
    """
    from airflow.sdk import Asset

    return Asset(uri=results_uri(f"{output.rstrip('/')}/{name}"), **more)


def tell_outlets(
    context: "Context", outlets: list[Any], job_uri: str, extra: dict[str, Any]
) -> None:
    """Put `extra` on the events of a finished job's results.

    An outlet that is the results' asset gets it; an AssetAlias gets the asset, which is how a job
    whose output is known only at run time says where its results are.
    """
    from airflow.sdk import Asset, AssetAlias

    uri = results_uri(job_uri)
    events = context["outlet_events"]
    for outlet in outlets:
        if isinstance(outlet, AssetAlias):
            events[outlet].add(Asset(uri=uri), extra=extra)
        elif isinstance(outlet, Asset) and outlet.uri.rstrip("/") == Asset(uri=uri).uri.rstrip("/"):
            events[outlet].extra.update(extra)
