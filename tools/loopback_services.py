"""What a job needs beside itself: an S3 server and an MLflow server, with the demo's data.

    python -m tools.loopback_services FOLDER

prints one line of JSON, the two URLs, and serves until its standard input ends. It is for those
whose own environment has neither moto nor MLflow.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from examples.demo import BUCKET, CHECKPOINT, upload
from examples.shapes.manifest import write_manifest
from tools.airflow_connections import ACCESS_KEY, SECRET_KEY
from tools.loopback_mlflow import loopback_mlflow
from tools.loopback_s3 import loopback_s3

_READABLE = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": "*",
            "Action": ["s3:GetObject", "s3:ListBucket"],
            "Resource": [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"],
        }
    ],
}


@dataclass(frozen=True, slots=True)
class Services:
    """Where they are."""

    s3: str  # endpoint; bucket `demo` holds shapes/manifest.jsonl, its images, and models/shapes/
    mlflow: str  # tracking server


@contextmanager
def loopback_services(folder: Path) -> Iterator[Services]:
    """Start both and upload the demo's manifest, images and checkpoint."""
    import boto3

    # Loopback takes any credentials; the user's own must not be asked for.
    os.environ |= {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    folder.mkdir(parents=True, exist_ok=True)
    with loopback_s3() as endpoint:
        upload(write_manifest(folder / "input").parent, endpoint)
        client = boto3.client("s3", endpoint_url=endpoint)
        for path in sorted(CHECKPOINT.iterdir()):
            client.upload_file(str(path), BUCKET, f"models/shapes/{path.name}")
        # Links from Airflow's pages open in a browser that has no credentials.
        client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(_READABLE))
        with loopback_mlflow(folder / "mlflow") as tracking:
            yield Services(endpoint, tracking)


if __name__ == "__main__":
    with loopback_services(Path(sys.argv[1])) as services:
        print(json.dumps(asdict(services)), flush=True)
        sys.stdin.read()
