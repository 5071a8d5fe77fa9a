"""The components in the image, by kfp.local and podman, with a real S3 server and a real MLflow.

What differs from a cluster: kfp's launcher is not in the container (kfp.local reads the files that
the component has written), artifacts are files below one folder and not objects, environment
variables stand in for the Secrets that the pipelines name, the network is the host's, and limits,
GPUs and time-outs are nobody's. The user is the image's own and may write the one folder.
"""

import os
from collections.abc import Iterator

import pytest

from tests.demo_services import DemoServices
from tests.kubeflow.e2e.world import IMAGE, World
from tools.image.build import build
from tools.image.podman import missing
from tools.image.podman_service import podman_service
from tools.services_process import services_process


@pytest.fixture(scope="session")
def image() -> str:
    """Build it as the image's own tests do, of whose layers it is made if they were first."""
    if why := missing():
        pytest.skip(f"no image is built here: {why}")
    build(image=IMAGE)
    return IMAGE


@pytest.fixture(scope="session")
def engine(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """podman in the place of Docker; it has the image."""
    with podman_service(tmp_path_factory.mktemp("podman")) as url:
        yield url


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServices]:
    with services_process(tmp_path_factory.mktemp("services")) as urls:
        yield DemoServices(**urls)


@pytest.fixture(scope="session")
def world(
    engine: str, services: DemoServices, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """All of it, with a folder that the image's user may write."""
    root = tmp_path_factory.mktemp("pipeline_root")
    os.chown(root, 10001, 0)
    before = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = engine
    try:
        yield World(services.s3, services.mlflow, root)
    finally:
        del os.environ["DOCKER_HOST"]
        if before is not None:
            os.environ["DOCKER_HOST"] = before
