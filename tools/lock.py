"""Resolve the newest versions that fit setup.cfg and write them to constraints/.

make lock
"""

import os
import re
import subprocess
import sys
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


def main() -> None:
    for name, extras in ENVIRONMENTS.items():
        wanted = ["setup.cfg", str(FOLDER / f"{name}-pins.in")]
        wanted += [argument for extra in extras for argument in ("--extra", extra)]
        print(f"wrote {FOLDER / name}.txt: {_lock(name, wanted)} packages")
    wanted = [str(FOLDER / f"{_PEERS}.in"), "--no-emit-package", _PEERS_LEFT_OUT]
    print(f"wrote {FOLDER / _PEERS}.txt: {_lock(_PEERS, wanted)} packages")


def _lock(name: str, wanted: list[str]) -> int:
    find_links = os.environ.get("PIP_FIND_LINKS")
    command = [
        str(Path(sys.executable).parent / "uv"), "pip", "compile", "--quiet", *wanted,
        "--no-header", "--no-annotate", "--python-version", "3.11", "--upgrade",
        *(["--find-links", find_links] if find_links else []),
    ]  # fmt: skip
    resolved = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # Which build of torch is meant (+cpu, +cu130) is this machine's affair.
    resolved = re.sub(r"(?m)^(torch==[0-9.]+)\+\w+$", r"\1", resolved)
    header = (
        f"# The versions that .{name} is built from, tested together. Written by `make lock`.\n"
    )
    (FOLDER / f"{name}.txt").write_text(header + resolved)
    return len(resolved.splitlines())


if __name__ == "__main__":
    main()
