"""podman as root, with settings of our own: the user's are neither read nor changed."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

FOLDER = Path("build/image")
# Limits that a root without CAP_SYS_RESOURCE may set, and what runs below a cgroup of version 1.
_SETTINGS = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
netns = "host"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
_PROGRAMS = ("podman", "runc", "debootstrap", "tar")


def missing() -> str:
    """Say what keeps this machine from building images; nothing if it can."""
    if os.geteuid() != 0:
        return "images are built by root, as debootstrap asks for"
    absent = [name for name in _PROGRAMS if _find(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def podman(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run podman to its end; options are those of subprocess.run."""
    return subprocess.run(["podman", *arguments], **{"text": True, "env": environment(), **options})


def environment() -> dict[str, str]:
    """The variables that podman is to run with."""
    path = FOLDER.absolute() / "containers.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_SETTINGS)
    return {**os.environ, "CONTAINERS_CONF": str(path)}


def _find(name: str) -> str | None:
    # Those of an administrator are not on every PATH.
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
