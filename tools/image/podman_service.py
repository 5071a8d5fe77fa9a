"""podman, spoken to as Docker is: for clients of Docker's API."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.image.podman import environment

_START_SECONDS = 30.0


@contextmanager
def podman_service(folder: Path) -> Iterator[str]:
    """Serve until the block ends; yield what DOCKER_HOST is to be."""
    socket = folder.absolute() / "podman.sock"
    with (folder / "podman.log").open("wb") as log:
        service = subprocess.Popen(
            ["podman", "system", "service", "--time=0", f"unix://{socket}"],
            env=environment(),
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not socket.exists():
            if service.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"podman does not serve: {(folder / 'podman.log').read_text()}")
            time.sleep(0.05)
        yield f"unix://{socket}"
    finally:
        service.terminate()
        service.wait(30)
