"""Resolve the newest versions that fit setup.cfg and write them to constraints/.

make lock

The environments come first; an image holds the same versions, with the hash of every file.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path("constraints")
# Each environment, by its extras. They are resolved apart: see docs/architecture.md.
ENVIRONMENTS = {
    "venv": ("engine", "gpu", "job", "dev"),
    "venv-airflow": ("airflow", "airflow-kubernetes", "airflow-dev"),
    "venv-kubeflow": ("kubeflow", "kubeflow-dev"),
}
# What benchmarks run beside ours: no extra of the package, and installed without its dependencies,
# so that a package left out here stays out.
_PEERS, _PEERS_LEFT_OUT = "venv-peers", "torchvision"
# Each variant of the image, by its extras.
IMAGES = {
    "image-cpu": ("engine", "job", "evaluation"),
    "image-cuda": ("engine", "gpu", "job", "evaluation"),
}
_TESTED = "venv"  # whose versions the images take
_IMAGE_PLATFORM = "x86_64-manylinux_2_28"


def main() -> None:
    for name, extras in ENVIRONMENTS.items():
        wanted = ["setup.cfg", str(FOLDER / f"{name}-pins.in"), *_options("--extra", extras)]
        print(f"wrote {FOLDER / name}.txt: {_lock(name, wanted)} packages")
    wanted = [str(FOLDER / f"{_PEERS}.in"), "--no-emit-package", _PEERS_LEFT_OUT]
    print(f"wrote {FOLDER / _PEERS}.txt: {_lock(_PEERS, wanted)} packages")
    for name in IMAGES:
        resolved = resolve_image(name)
        (FOLDER / f"{name}.txt").write_text(resolved)
        print(f"wrote {FOLDER / name}.txt: {resolved.count('==')} packages")


def _lock(name: str, wanted: list[str]) -> int:
    find_links = os.environ.get("PIP_FIND_LINKS")
    resolved = _resolve(
        *wanted, "--upgrade", *_options("--find-links", [find_links] if find_links else [])
    )
    # Which build of torch is meant (+cpu, +cu130) is this machine's affair.
    resolved = re.sub(r"(?m)^(torch==[0-9.]+)\+\w+$", r"\1", resolved)
    header = (
        f"# The versions that .{name} is built from, tested together. Written by `make lock`.\n"
    )
    (FOLDER / f"{name}.txt").write_text(header + resolved)
    return len(resolved.splitlines())


def resolve_image(name: str) -> str:
    """What an image is made of: the versions of `.venv`, with the hashes of their files."""
    tested = FOLDER / f"{_TESTED}.txt"
    build, torch = [], ""
    if name == "image-cpu":
        # PyPI has the CUDA build of torch. The other one is a folder's that pip is told of, or
        # that of PyTorch's own index.
        found = re.search(r"(?m)^torch==.*$", tested.read_text())
        assert found is not None, f"{tested} has no torch"
        torch = f"{found[0]}+cpu"
        find_links = os.environ.get("PIP_FIND_LINKS")
        build = ["-", *(["--find-links", find_links] if find_links else ["--torch-backend", "cpu"])]
    resolved = _resolve(
        *("setup.cfg", *build, *_options("--extra", IMAGES[name]), "--constraint", str(tested)),
        *("--generate-hashes", "--python-platform", _IMAGE_PLATFORM),
        requirements=torch,
    )
    header = f"# What is in {name}, by the hashes of its files. Written by `make lock`.\n"
    return header + resolved


def _resolve(*arguments: str, requirements: str = "") -> str:
    uv = str(Path(sys.executable).parent / "uv")
    command = [uv, "pip", "compile", "--quiet", *arguments, "--no-header", "--no-annotate"]
    return subprocess.run(
        [*command, "--python-version", "3.11"],
        check=True,
        input=requirements,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def _options(name: str, values: Iterable[str]) -> list[str]:
    return [argument for value in values for argument in (name, value)]


if __name__ == "__main__":
    main()
