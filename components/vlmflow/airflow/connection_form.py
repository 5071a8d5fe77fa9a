"""The form of a connection of type `vlmflow`. Said once, shown in both of Airflow's styles."""

from typing import NamedTuple


class ExtraField(NamedTuple):
    """A field that is kept in the connection's extra."""

    name: str
    label: str
    placeholder: str
    description: str


EXTRA_FIELDS = (
    ExtraField(
        "endpoint_url",
        "S3 endpoint",
        "https://s3.example.org",
        "URL of an S3 store other than AWS; empty for AWS.",
    ),
    ExtraField(
        "mlflow_uri",
        "MLflow tracking URI",
        "https://mlflow.example.org",
        "Where runs are logged; empty: MLflow's own environment decides.",
    ),
    ExtraField(
        "image",
        "Image",
        "registry.example.org/vlmflow:0.1.0",
        "Container image of operators that start pods and name none.",
    ),
    ExtraField(
        "python",
        "Python",
        "/opt/vlmflow/bin/python",
        "Interpreter with vlmflow and its engine, of operators that start a process and name none.",
    ),
)
HIDDEN_FIELDS = ("schema", "port", "extra")
RELABELED = {
    "host": "Batches of @task.llm_batch",  # the one field that its registry hands to an adapter
    "login": "MLflow user",
    "password": "MLflow password",
}
PLACEHOLDERS = {field.name: field.placeholder for field in EXTRA_FIELDS} | {
    "host": "s3://bucket/batches?endpoint_url=...&python=...",
}
