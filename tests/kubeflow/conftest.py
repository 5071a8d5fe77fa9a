"""Tests that run in .venv-kubeflow; where kfp is missing there is nothing to collect.

Steps run as they do in a container, but by the interpreter of `.venv`, which has what a job needs,
and with the fake engine in place of a model.
"""

import os
from importlib.util import find_spec

import pytest

from tests.job_processes import job_environment

__all__ = ["job_environment"]  # found here by the tests

if find_spec("kfp") is None:
    collect_ignore_glob = ["*"]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's server and image."""
    for name in list(os.environ):
        if name.startswith(("KF_PIPELINES_", "VLMFLOW_IMAGE")):
            monkeypatch.delenv(name)
