"""The batch pipeline as a cluster runs it, on this machine: its image, S3, MLflow, a gate.

    make kubeflow

Builds the image with podman, starts an S3 server with the demo's data and an MLflow server, and
runs pipelines/compiled/vlm_batch_inference_pipeline.yaml through kfp.local: a container for each
step. Everything is on loopback and in build/kubeflow. MLflow stays until Ctrl-C.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from tools.airflow_connections import ACCESS_KEY, SECRET_KEY
from tools.image.build import IMAGE, build
from tools.image.podman import missing
from tools.image.podman_service import podman_service
from tools.kfp_local.__main__ import run_package
from tools.services_process import services_process
from vlmflow.kubeflow.image import DEFAULT_IMAGE, IMAGE_VARIABLE
from vlmflow.kubeflow.job_parameters import job_parameters

FOLDER = Path("build/kubeflow")
PACKAGE = Path(__file__).parents[1] / "pipelines/compiled/vlm_batch_inference_pipeline.yaml"
SECRET = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_DEFAULT_REGION": "us-east-1",
}


def main() -> int:
    # An image that is there already, and an engine that runs: nothing is asked of podman then.
    image = os.environ.get(IMAGE_VARIABLE)
    if (image is None or "DOCKER_HOST" not in os.environ) and (why := missing()):
        print(
            f"kubeflow_demo: no image can be built here ({why}); build one with Docker "
            f"(docs/image.md) and give {IMAGE_VARIABLE} and DOCKER_HOST",
            file=sys.stderr,
        )
        return 2
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "services").mkdir(parents=True)
    if image is None:
        print("building the image: some minutes at first", flush=True)
        build()
        image = IMAGE
    given = os.environ.get("DOCKER_HOST")
    print("starting S3 and MLflow", flush=True)
    with (
        nullcontext(given) if given else podman_service(FOLDER) as engine,
        services_process(FOLDER / "services") as services,
    ):
        os.environ["DOCKER_HOST"] = str(engine)
        parameters = job_parameters(
            manifest="s3://demo/shapes/manifest.jsonl",
            model="s3://demo/models/shapes",
            output="s3://demo/results",
            name="shapes",
            num_shards=2,
            endpoint_url=services["s3"],
            tracking={"uri": services["mlflow"]},
            generation={"max_new_tokens": 96},
        )
        started = time.monotonic()
        try:
            run_package(PACKAGE, parameters, FOLDER / "root", {DEFAULT_IMAGE: image}, SECRET)
        except RuntimeError as error:
            print(f"kubeflow_demo: {error}", file=sys.stderr)
            return 1
        print(
            f"\nthis took   {time.monotonic() - started:.0f} s\n"
            f"MLflow      {services['mlflow']}\n"
            f"results     {services['s3']}/demo/results/shapes/report.html\n"
            f"outputs     {FOLDER / 'root'}\n\n"
            "Ctrl-C ends everything.",
            flush=True,
        )
        try:
            while sys.stdin.isatty():
                time.sleep(3600)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            print("\nending", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
