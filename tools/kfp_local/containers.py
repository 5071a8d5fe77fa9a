"""What kfp.local's DockerRunner does with one container, done so that a failure is seen.

kfp 2.17 has the engine remove a container as soon as it ends, and takes one that it cannot find any
more for a success. It also leaves the image's own entry point in front of a component's command,
which Kubernetes puts in its place.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import docker
from kfp.local import docker_task_handler

_ANSWER_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Ended:
    """A container that ran to its end."""

    command: list[str]
    exit_code: int  # 128 + signal for one that was killed
    output: str  # stdout and stderr


@dataclass(slots=True)
class Containers:
    """Those that were started, in their order; loops start several at a time."""

    running: dict[str, list[str]] = field(default_factory=dict)  # commands, by the container's id
    ended: list[Ended] = field(default_factory=list)


@contextmanager
def watched_containers(images: Mapping[str, str]) -> Iterator[Containers]:
    """Run containers this way until the block ends.

    `images` names what runs here in the place of an image that a pipeline names. Nothing is pulled.
    """
    watched = Containers()

    def run(
        client: Any, image: str, command: list[str], volumes: dict[str, Any], **options: Any
    ) -> int:
        container = client.containers.create(
            images.get(image, image),
            command[1:],
            entrypoint=command[:1],
            volumes=volumes,
            detach=True,
            **options,
        )
        container.start()
        watched.running[container.id] = command
        lines = []
        try:
            for line in container.logs(stream=True, follow=True):
                lines.append(line.decode(errors="replace"))
                print(lines[-1], end="")
            code = int(container.wait()["StatusCode"])
        finally:
            del watched.running[container.id]
            container.remove(force=True)
        watched.ended.append(Ended(command, code, "".join(lines)))
        return code

    with (
        patch.object(docker_task_handler, "run_docker_container", run),
        # A podman that is building an image answers nobody for minutes.
        patch.object(docker, "from_env", partial(docker.from_env, timeout=_ANSWER_SECONDS)),
    ):
        yield watched
