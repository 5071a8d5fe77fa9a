"""Run a compiled pipeline on this machine, in containers of Docker or podman.

    .venv-kubeflow/bin/python pipelines/vlm_batch_inference_pipeline.py --dry-run \\
        --manifest s3://data/manifest.jsonl --model s3://models/shapes \\
        --output s3://data/results --endpoint-url http://127.0.0.1:9000 > parameters.json
    .venv-kubeflow/bin/python -m tools.kfp_local \\
        pipelines/compiled/vlm_batch_inference_pipeline.yaml parameters.json \\
        --image vlmflow:cpu --env AWS_ACCESS_KEY_ID --env AWS_SECRET_ACCESS_KEY

DOCKER_HOST says where the engine is, as for every client of Docker; docs/kubeflow.md has more.
"""

import argparse
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import docker.errors
from kfp import components

from tools.kfp_local.session import local_runs
from vlmflow.kubeflow.image import DEFAULT_IMAGE

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.kfp_local",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pipeline", type=Path, help="the pipeline's YAML")
    parser.add_argument("parameters", type=Path, help="a JSON object of its parameters")
    parser.add_argument("--image", metavar="IMAGE", help=f"in the place of {DEFAULT_IMAGE}")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="of every container, in the place of a cluster's Secrets; without a value, ours",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("build/kfp"),
        metavar="FOLDER",
        help="where the steps' outputs go (default: build/kfp)",
    )
    options = parser.parse_args(arguments)
    try:
        parameters = json.loads(options.parameters.read_text())
        environment = _environment(options.env)
    except (OSError, ValueError) as error:
        print(f"tools.kfp_local: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    images = {} if options.image is None else {DEFAULT_IMAGE: options.image}
    try:
        run_package(options.pipeline, parameters, options.root, images, environment)
    except docker.errors.DockerException as error:
        engine = os.environ.get("DOCKER_HOST", "Docker")
        print(f"tools.kfp_local: {engine} does not answer or refuses: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except RuntimeError as error:  # kfp's own, which names the task
        print(f"tools.kfp_local: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def run_package(
    package: Path,
    parameters: dict[str, Any],
    root: Path,
    images: dict[str, str],
    environment: dict[str, str],
) -> None:
    """Run a compiled pipeline to its end. Raises RuntimeError if a task failed."""
    pipeline = components.load_component_from_file(str(package))
    with local_runs(root, images=images, environment=environment), warnings.catch_warnings():
        # Limits and accelerators, which nobody sets here.
        warnings.filterwarnings("ignore", message=".*have no effect in the current local runner")
        # What the importer publishes stays on S3, where nobody here opens it.
        warnings.filterwarnings("ignore", message="It looks like you're using the remote file")
        pipeline(**parameters)


def _environment(words: list[str]) -> dict[str, str]:
    """As `docker run --env` reads them. Raises ValueError for one that we have not."""
    values = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign and name not in os.environ:
            raise ValueError(f"--env {name}: there is no such variable; give {name}=VALUE")
        values[name] = value if sign else os.environ[name]
    return values


if __name__ == "__main__":
    sys.exit(main())
