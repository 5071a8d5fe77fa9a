"""The main job end to end on a laptop: an S3 manifest in, committed results and an MLflow run out.

    make demo

Starts an S3 server on loopback, uploads the demo's manifest and images, runs `vlmflow run` on them,
and says where everything is. The server ends with the demo, so results and report are copied.
"""

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import boto3

from examples.shapes.manifest import write_manifest
from tools.loopback_s3 import loopback_s3
from vlmflow.job.store import StoreOpener

FOLDER = Path("build/demo")
BUCKET = "demo"
NEXT_OPTION = " \\\n    --"
CHECKPOINT = Path(__file__).parent / "shapes" / "checkpoint"


def main() -> int:
    started = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    manifest = write_manifest(FOLDER / "input")
    # Loopback takes any credentials; the user's own must not be asked for.
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "demo",
        "AWS_SECRET_ACCESS_KEY": "demo",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "MLFLOW_RUN_ID"):
        os.environ.pop(name, None)
    database = f"sqlite:///{FOLDER / 'mlflow.db'}"
    with loopback_s3() as endpoint:
        upload(manifest.parent, endpoint)
        command = [
            os.path.relpath(Path(sys.executable).parent / "vlmflow"), "run",
            "--manifest", f"s3://{BUCKET}/shapes/manifest.jsonl",
            "--model", os.path.relpath(CHECKPOINT),
            "--output", f"s3://{BUCKET}/results",
            "--name", "shapes",
            "--endpoint-url", endpoint,
            "--max-new-tokens", "96",
            "--mlflow-uri", database,
        ]  # fmt: skip
        print(f"$ {' '.join(command).replace(' --', NEXT_OPTION)}\n", flush=True)
        code = subprocess.run(command).returncode
        download("results/shapes/", FOLDER / "output", endpoint)
    print(f"\nresults are copied to   {FOLDER / 'output'}")
    print(f"open the MLflow run     .venv/bin/mlflow ui --backend-store-uri {database}")
    print(f"this took               {time.monotonic() - started:.0f} s")
    return code


def upload(folder: Path, endpoint: str) -> None:
    """Put the manifest and its images into a bucket, a new one if there is none."""
    client = boto3.client("s3", endpoint_url=endpoint)
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=BUCKET)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"shapes/{path.relative_to(folder)}")


def download(prefix: str, folder: Path, endpoint: str) -> None:
    """Copy what users read, without `_work/`."""
    store = StoreOpener(endpoint).open(f"s3://{BUCKET}")
    for key in store.list(prefix):
        name = key.removeprefix(prefix)
        if not name.startswith("_work/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(store.read(key))


if __name__ == "__main__":
    sys.exit(main())
