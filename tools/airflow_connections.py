"""The two connections that the DAGs want, stored through the API as a person would in the form."""

import json
from pathlib import Path

from tools.airflow_api import AirflowApi

# Of loopback, which takes any.
ACCESS_KEY, SECRET_KEY = "demo", "demo-secret-key"


def add_connections(api: AirflowApi, s3: str, mlflow: str, python: Path) -> None:
    """Add `aws_default` and `vlmflow_default`.

    s3, mlflow  URLs of the servers
    python      interpreter of the environment with the engine
    """
    api.call(
        "POST",
        "/connections",
        {
            "connection_id": "aws_default",
            "conn_type": "aws",
            "login": ACCESS_KEY,
            "password": SECRET_KEY,
            "extra": json.dumps({"region_name": "us-east-1", "endpoint_url": s3}),
        },
    )
    api.call(
        "POST",
        "/connections",
        {
            "connection_id": "vlmflow_default",
            "conn_type": "vlmflow",
            "extra": json.dumps(
                {"endpoint_url": s3, "mlflow_uri": mlflow, "python": str(python.absolute())}
            ),
        },
    )
