"""OpenLineage: a job reads a manifest and writes results, so many rows of so many bytes."""

from typing import TYPE_CHECKING, Any

from vlmflow.job import layout
from vlmflow.job.store.locate import is_s3, split_s3

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

    from vlmflow.job.spec_arguments import JobPlace

_FACET_SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunFacet"


def job_lineage(
    manifest: str | None, place: "JobPlace", report: dict[str, Any] | None
) -> "OperatorLineage":
    """Describe a run of a job; with its counts, once there is a report."""
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.event_v2 import Dataset, InputDataset, OutputDataset
    from openlineage.client.facet_v2 import input_statistics_input_dataset as input_statistics
    from openlineage.client.facet_v2 import output_statistics_output_dataset as output_statistics

    if report is not None:
        manifest = report["manifest"]["uri"]
    inputs: list[Dataset] = []
    outputs: list[Dataset] = []
    counts = (report or {}).get("counts", {})
    if manifest:
        facets = {}
        if report is not None:
            facets["inputStatistics"] = input_statistics.InputStatisticsInputDatasetFacet(
                rowCount=counts["records"], size=report["manifest"]["num_bytes"], fileCount=1
            )
        inputs.append(InputDataset(*_names(manifest), inputFacets=facets))
    for prefix, num_rows in (
        (layout.RESULTS, counts.get("succeeded")),
        (layout.FAILURES, _sum(counts, "failed", "skipped")),
    ):
        facets = {}
        if num_rows is not None:
            facets["outputStatistics"] = output_statistics.OutputStatisticsOutputDatasetFacet(
                rowCount=num_rows
            )
        where = _names(f"{place.uri}/{prefix}".rstrip("/"))
        outputs.append(OutputDataset(*where, outputFacets=facets))
    run_facets = {} if report is None else {"vlmflow_counts": _counts_facet(report)}
    return OperatorLineage(inputs=inputs, outputs=outputs, run_facets=run_facets)


def _counts_facet(report: dict[str, Any]) -> Any:
    import attrs
    from openlineage.client.facet_v2 import RunFacet

    @attrs.define
    class VlmflowCountsRunFacet(RunFacet):
        """The report's counts, and what it took."""

        records: int
        succeeded: int
        failed: int
        skipped: int
        images: int
        outputTokens: int
        imagesPerSecond: float | None
        mlflowRunId: str | None

        @staticmethod
        def _get_schema() -> str:
            return _FACET_SCHEMA

    counts = report["counts"]
    return VlmflowCountsRunFacet(
        **{name: counts[name] for name in ("records", "succeeded", "failed", "skipped")},
        images=report["images"],
        outputTokens=report["tokens"]["output"],
        imagesPerSecond=report["throughput"]["images_per_second"],
        mlflowRunId=(report["mlflow"] or {}).get("run_id"),
    )


def _sum(counts: dict[str, int], *names: str) -> int | None:
    return sum(counts[name] for name in names) if counts else None


def _names(uri: str) -> tuple[str, str]:
    """Namespace and name, as OpenLineage's naming of datasets has them."""
    if is_s3(uri):
        bucket, key = split_s3(uri)
        return f"s3://{bucket}", key or "/"
    return "file", uri
