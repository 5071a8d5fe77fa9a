"""Where a person goes on looking: the MLflow run, the report, the results."""

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import attrs
from airflow.sdk import BaseOperatorLink

from vlmflow.job import layout
from vlmflow.job.store.locate import is_s3, split_s3, without_query

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator


@attrs.define()
class _JobLink(BaseOperatorLink):
    """Pushed as XCom while the task runs, and again by Airflow at its end."""

    def get_link(self, operator: "BaseOperator", *, ti_key: Any) -> str:
        """Called where the task ran; elsewhere Airflow reads the XCom."""
        links: dict[str, str] = getattr(operator, "job_links", {})
        return links.get(self.xcom_key, "")


@attrs.define()
class MLflowRunLink(_JobLink):
    """The job's MLflow run."""

    @property
    def name(self) -> str:
        return "MLflow run"

    @property
    def xcom_key(self) -> str:
        return "vlmflow_mlflow_run"


@attrs.define()
class ReportLink(_JobLink):
    """report.html."""

    @property
    def name(self) -> str:
        return "Report"

    @property
    def xcom_key(self) -> str:
        return "vlmflow_report"


@attrs.define()
class ResultsLink(_JobLink):
    """The folder of the results."""

    @property
    def name(self) -> str:
        return "Results"

    @property
    def xcom_key(self) -> str:
        return "vlmflow_results"


def place_links(job_uri: str, endpoint_url: str | None) -> dict[str, str]:
    """The links that are known before a job begins, by XCom key."""
    return {
        ReportLink().xcom_key: _url(f"{job_uri}/{layout.REPORT_HTML}", endpoint_url),
        ResultsLink().xcom_key: _url(f"{job_uri}/{layout.RESULTS}", endpoint_url),
    }


def run_links(run: dict[str, Any] | None) -> dict[str, str]:
    """The link to an MLflow run, once there is one whose server has pages."""
    uri = (run or {}).get("tracking_uri") or ""
    if run is None or not run.get("run_id") or not uri.startswith(("http://", "https://")):
        return {}
    experiment = f"experiments/{run['experiment_id']}/" if run.get("experiment_id") else ""
    page = f"{without_query(uri).rstrip('/')}/#/{experiment}runs/{run['run_id']}"
    return {MLflowRunLink().xcom_key: page}


def _url(uri: str, endpoint_url: str | None) -> str:
    """What a browser opens: the AWS console, the store itself, or a file."""
    if not is_s3(uri):
        return uri if "://" in uri else f"file://{quote(uri)}"
    bucket, key = split_s3(uri)
    if endpoint_url is not None and key.endswith("/"):  # a list: no object has that name
        return f"{endpoint_url.rstrip('/')}/{bucket}?list-type=2&prefix={quote(key)}"
    if endpoint_url is not None:
        return f"{endpoint_url.rstrip('/')}/{bucket}/{quote(key)}"
    kind = "buckets" if key.endswith("/") else "object"
    return f"https://s3.console.aws.amazon.com/s3/{kind}/{bucket}?prefix={quote(key)}"
