"""Links that a browser can open."""

import pytest

from vlmflow.airflow.links.job import MLflowRunLink, ReportLink, place_links, run_links


@pytest.mark.parametrize(
    ("uri", "endpoint", "report", "results"),
    [
        (
            "s3://data/out/a b",
            None,
            "https://s3.console.aws.amazon.com/s3/object/data?prefix=out/a%20b/report.html",
            "https://s3.console.aws.amazon.com/s3/buckets/data?prefix=out/a%20b/results/",
        ),
        (
            "s3://data/out/m",
            "http://minio:9000/",
            "http://minio:9000/data/out/m/report.html",
            "http://minio:9000/data?list-type=2&prefix=out/m/results/",
        ),
        ("/out/m", None, "file:///out/m/report.html", "file:///out/m/results/"),
    ],
)
def test_report_and_results_are_where_they_can_be_seen(uri, endpoint, report, results):
    links = place_links(uri, endpoint)
    assert links == {"vlmflow_report": report, "vlmflow_results": results}


def test_a_run_has_a_page_with_or_without_its_experiment():
    run = {"run_id": "f00", "tracking_uri": "http://user:secret@mlflow:5000/"}
    key = MLflowRunLink().xcom_key
    assert run_links(run)[key] == "http://mlflow:5000/#/runs/f00"
    page = run_links(run | {"experiment_id": "7"})[key]
    assert page == "http://mlflow:5000/#/experiments/7/runs/f00"


@pytest.mark.parametrize(
    "run", [None, {"error": "no answer"}, {"run_id": "f00", "tracking_uri": "sqlite:///m.db"}]
)
def test_without_a_server_there_is_no_page(run):
    assert run_links(run) == {}


def test_an_operator_without_links_has_none():
    assert ReportLink().get_link(object(), ti_key=None) == ""
