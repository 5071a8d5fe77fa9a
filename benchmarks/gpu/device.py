"""The device that is measured, and what a table must say of it."""

import argparse
import gc
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

EXIT_NO_DEVICE = 2


@dataclass(frozen=True, slots=True)
class Environment:
    """Where numbers come from. As much of it as there is: "unknown" stands for the rest."""

    device: str  # the GPU's name; a CPU's architecture in a rehearsal
    driver: str
    python: str
    torch: str
    cuda: str  # that torch was built with
    triton: str
    transformers: str
    commit: str

    def sentence(self) -> str:
        return (
            f"{self.device}, driver {self.driver}, CUDA {self.cuda}, torch {self.torch}, Triton "
            f"{self.triton}, transformers {self.transformers}, Python {self.python}, commit "
            f"{self.commit}."
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that all commands for a GPU share."""
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="FOLDER")
    parser.add_argument(
        "--resume", action="store_true", help="keep the parts that FOLDER's file has finished"
    )
    parser.add_argument("--only", nargs="*", metavar="PART", help="parts whose names begin so")
    parser.add_argument(
        "--minutes",
        type=float,
        default=8.5,
        help="time of this call; parts that do not fit are left",
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal at toy sizes"
    )


def require(device: str) -> None:
    """End the process with one sentence if the device, or what drives it, is not there.

    Says where kernels run, which must be known before triton is imported.
    """
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        os.environ.pop("TRITON_INTERPRET", None)
    for module in ("torch", "transformers", "triton"):
        if find_spec(module) is None and (device == "cuda" or module != "triton"):
            _refuse(f"{module} is not installed for {sys.executable}; name another interpreter")
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        _refuse(
            f"torch {torch.__version__} sees no CUDA device; run this on a machine with a GPU, or "
            "rehearse it with --device cpu"
        )


def describe(device: str) -> Environment:
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    return Environment(
        device=name,
        driver=_first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda or "none",
        triton=_version("triton"),
        transformers=_version("transformers"),
        commit=os.environ.get("COMMIT") or _first_line("git", "rev-parse", "--short", "HEAD"),
    )


def release(device: str) -> None:
    """Give this process's unused memory back to the device, for whoever looks what is free."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _refuse(sentence: str) -> None:
    print(sentence, file=sys.stderr)
    raise SystemExit(EXIT_NO_DEVICE)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _first_line(*command: str) -> str:
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = process.stdout.splitlines()
    return lines[0].strip() if process.returncode == 0 and lines else "unknown"
