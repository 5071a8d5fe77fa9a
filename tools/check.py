"""Run the static checks and the test suites, with the seconds each took beside its budget.

    make test | make test-fast | make test-full

A suite that takes more than 1.5 times its budget fails: a slow test suite is one nobody runs.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
TOLERANCE = 1.5  # machines are noisy


@dataclass(frozen=True, slots=True)
class Suite:
    name: str
    commands: tuple[tuple[str, ...], ...]
    budget_seconds: float


def tool(name: str, *arguments: str) -> tuple[str, ...]:
    return (str(BIN / name), *arguments)


def pytest(*arguments: str, python: str = sys.executable) -> tuple[str, ...]:
    return (python, "-m", "pytest", "-rs", *arguments)


STATIC = Suite(
    "static checks",
    (
        tool("ruff", "check", "--quiet", "."),
        tool("ruff", "format", "--check", "--quiet", "."),
        tool("mypy"),
        tool("lint-imports"),
    ),
    90,
)
_TRACKED = "tests/job/test_tracked.py"  # it needs an MLflow server

# Seconds on 2 cores. The order is that of the layers: what is below fails first.
TESTS = {
    "layout": (("tests/layout", "tests/tools", "tests/benchmarks"), 40),
    "engine": (
        ("tests/engine", "--ignore=tests/engine/models", "--ignore=tests/engine/kernels"),
        240,
    ),
    "models": (("tests/engine/models",), 150),
    "kernels": (("tests/engine/kernels",), 180),
    "gpu": (("tests/gpu",), 60),  # rehearsals of what runs on a GPU
    "job": (
        (
            "tests/job",
            "tests/cli",
            "tests/kfp_step",
            "--ignore=tests/job/model",
            "--ignore=tests/job/chaos",
            f"--ignore={_TRACKED}",
        ),
        180,
    ),
    "chaos": (("tests/job/model", "tests/job/chaos"), 120),
    "tracking": (("tests/tracking", _TRACKED), 90),
    "evaluation": (("tests/evaluation",), 90),
    "packaging": (("tests/packaging",), 60),
    "examples": (("tests/examples",), 150),
    "image": (("tests/image",), 40),  # what can be said of it without building it
    "airflow": (("tests/airflow",), 210),
    "kubeflow": (("tests/kubeflow",), 90),
}
# Suites of what runs where there is no torch, by the environment they run in.
PYTHONS = {
    "airflow": ".venv-airflow/bin/python",
    "kubeflow": ".venv-kubeflow/bin/python",
}
FAST = ("tests/engine/scheduler", "tests/engine/inputs", "tests/job", "tests/cli")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--fast", action="store_true", help="neither models nor processes")
    choice.add_argument("--full", action="store_true", help="the slow tests too, without budgets")
    options = parser.parse_args()
    suites = [STATIC, *_test_suites(fast=options.fast, full=options.full)]
    failed, rows = [], []
    for suite in suites:
        print(f"--- {suite.name}", flush=True)
        start = time.monotonic()
        codes = [
            subprocess.run(command, env=_environment()).returncode for command in suite.commands
        ]
        seconds = time.monotonic() - start
        is_late = not options.full and seconds > TOLERANCE * suite.budget_seconds
        verdict = "failed" if any(codes) else "over budget" if is_late else "ok"
        rows.append(f"{suite.name:<14} {seconds:7.1f} s of {suite.budget_seconds:4.0f}  {verdict}")
        if verdict != "ok":
            failed.append(suite.name)
    print("\n" + "\n".join(rows))
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return 1 if failed else 0


def _test_suites(*, fast: bool, full: bool) -> list[Suite]:
    if fast:
        return [Suite("fast tests", (pytest("-m", "not slow and not process", *FAST),), 60)]
    marks = () if full else ("-m", "not slow")
    return [
        Suite(name, (pytest(*marks, *arguments, python=PYTHONS.get(name, sys.executable)),), budget)
        for name, (arguments, budget) in TESTS.items()
    ]


def _environment() -> dict[str, str]:
    # A test must not find a real bucket, a real tracking server or a hub by accident.
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "MLFLOW_", "HF_"))
    }
    return {
        # Models this small are computed sooner than a second thread is woken.
        "OMP_NUM_THREADS": "1",
        **kept,
        "HF_HUB_OFFLINE": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


if __name__ == "__main__":
    sys.exit(main())
