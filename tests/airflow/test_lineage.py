"""What lineage is told of a job."""

from openlineage.client.serde import Serde

from tests.airflow.jobs import make_job
from vlmflow.airflow.lineage import job_lineage
from vlmflow.airflow.operators.batch_inference import VLMBatchInferenceOperator
from vlmflow.job.spec_arguments import JobPlace


def names(datasets) -> list[tuple[str, str]]:
    return [(dataset.namespace, dataset.name) for dataset in datasets]


def test_a_job_reads_a_manifest_and_writes_two_prefixes():
    lineage = job_lineage("s3://data/m.jsonl", JobPlace("s3://data/out/m", None), None)
    assert names(lineage.inputs) == [("s3://data", "m.jsonl")]
    assert names(lineage.outputs) == [
        ("s3://data", "out/m/results"),
        ("s3://data", "out/m/failures"),
    ]
    assert lineage.run_facets == {}


def test_a_finished_job_tells_its_counts(tmp_path, context, job_environment):
    job = make_job(tmp_path, [*(f"question {n}" for n in range(19)), "refuse"])
    operator = VLMBatchInferenceOperator(task_id="infer", **job)
    assert operator.get_openlineage_facets_on_start().run_facets == {}
    operator.execute(context)
    lineage = operator.get_openlineage_facets_on_complete(None)
    assert names(lineage.inputs) == [("file", job["manifest"])]
    assert lineage.inputs[0].inputFacets["inputStatistics"].rowCount == 20
    rows = [output.outputFacets["outputStatistics"].rowCount for output in lineage.outputs]
    assert rows == [19, 1]
    facet = Serde.to_dict(lineage.run_facets["vlmflow_counts"])
    assert (facet["records"], facet["succeeded"], facet["failed"]) == (20, 19, 1)
    assert facet["_schemaURL"]
