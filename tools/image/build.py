"""Build the image from this working tree on base images made here, and say its size.

    python -m tools.image.build

What pip is told on this machine by its variables (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CERT) it is
told in the build; none of it stays in the image.
"""

import json
import os
import subprocess
import time
from pathlib import Path

from tools.image.base import BASE, BUILDER, make_bases
from tools.image.podman import podman
from vlmflow import __version__

IMAGE = "localhost/vlmflow:test"
_LINKS = "/mnt"  # a folder that every base has


def build(variant: str = "cpu", image: str = IMAGE) -> None:
    """Make the base images, if they are not there, and the image."""
    make_bases()
    find_links = os.environ.get("PIP_FIND_LINKS", "")
    arguments = {
        "VARIANT": variant,
        "BUILDER_IMAGE": BUILDER,
        "BASE_IMAGE": BASE,
        "VERSION": __version__,
        "REVISION": _revision(),
        "PIP_INDEX_URL": os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple"),
    }
    mounts: list[str] = []
    if Path(find_links).is_dir():  # it has the CPU's build of torch
        arguments |= {"PIP_FIND_LINKS": _LINKS, "PIP_EXTRA_INDEX_URL": ""}
        mounts += ["--volume", f"{Path(find_links).absolute()}:{_LINKS}:ro"]
    if certificates := os.environ.get("PIP_CERT"):
        mounts += ["--secret", f"id=ca,src={certificates}"]
    options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    podman(
        *("build", "--network=host", "--layers", *options, *mounts, "--tag", image, "."),
        check=True,
    )


def size_bytes(image: str = IMAGE) -> int:
    """What its layers take when they are unpacked."""
    shown = podman("image", "inspect", image, check=True, stdout=subprocess.PIPE).stdout
    return int(json.loads(shown)[0]["Size"])


def _revision() -> str:
    asked = ["git", "rev-parse", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    start = time.monotonic()
    build()
    print(f"{IMAGE}: {size_bytes() / 1e9:.2f} GB, built in {time.monotonic() - start:.0f} s")
