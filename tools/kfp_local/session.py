"""Where kfp.local runs something: its folder, its containers, and what they are given."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kfp import local
from kfp.local import config

from tools.kfp_local.containers import Containers, watched_containers
from tools.kfp_local.loops import mended_loops


@contextmanager
def local_runs(
    root: Path,
    *,
    images: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
) -> Iterator[Containers]:
    """Let components and pipelines that are called in this block run here, in containers.

    root         where outputs go; made if it is not there
    images       an image here for one that a pipeline names
    environment  of every container, where a cluster takes a Secret's keys
    user         of the containers, "uid:gid"; without one, whoever calls

    The containers have this machine's network: its loopback is theirs. What the platform settings
    say (GPUs, memory, tolerations, Secrets, time-outs) is for Kubernetes, and nobody does it here.
    """
    root.mkdir(parents=True, exist_ok=True)
    local.init(
        runner=local.DockerRunner(
            network_mode="host",
            # The image needs group 0 and no certain user. Files are the caller's own then.
            user=user or f"{os.getuid()}:0",
            environment=dict(environment or {}),
        ),
        pipeline_root=str(root.absolute()),
    )
    try:
        with mended_loops(), watched_containers(images or {}) as containers:
            yield containers
    finally:
        config.LocalExecutionConfig.instance = None
