"""Base images of Debian 12's own Python, made here: no image is pulled from anywhere.

    python -m tools.image.base

They stand for python:3.11-bookworm and python:3.11-slim-bookworm in tests, and lie as those do: pip
is in /usr/local, and only the builder has a compiler. They are made once.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from tools.image.podman import FOLDER, podman

BASE = "localhost/vlmflow-base:bookworm"
BUILDER = "localhost/vlmflow-builder:bookworm"
_MIRROR = "http://deb.debian.org/debian"
_BUILDER_FILE = f"""\
FROM {BASE}
RUN apt-get update \\
    && apt-get install --yes --no-install-recommends g++ python3-dev \\
    && rm -rf /var/lib/apt/lists/*
"""


def make_bases() -> None:
    """Make both, unless they are there."""
    if not _exists(BASE):
        _make_base(FOLDER / "rootfs")
    if not _exists(BUILDER):
        podman(
            *("build", "--quiet", "--network=host", "--tag", BUILDER, "-"),
            input=_BUILDER_FILE,
            check=True,
        )


def _make_base(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    subprocess.run(
        ["debootstrap", "--variant=minbase", "--include=ca-certificates,python3"]
        + ["bookworm", str(root), _MIRROR],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    packages = root / "usr/local/lib/python3.11/dist-packages"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        + ["--root-user-action=ignore", "--target", str(packages), "pip", "setuptools", "wheel"],
        check=True,
    )
    for folder in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(root / folder)
    archive = subprocess.Popen(
        ["tar", "--directory", str(root), "--create", "."], stdout=subprocess.PIPE
    )
    podman("import", "--quiet", "-", BASE, stdin=archive.stdout, check=True)
    if archive.wait() != 0:
        raise RuntimeError(f"tar failed on {root}")
    shutil.rmtree(root)


def _exists(image: str) -> bool:
    return podman("image", "exists", image).returncode == 0


if __name__ == "__main__":
    make_bases()
