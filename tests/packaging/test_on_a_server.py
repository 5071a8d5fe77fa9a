"""Logged, copied, registered and read back through a real tracking server, as a team has one."""

import shutil

import pytest

from tests.packaging.conftest import CHECKPOINT, MLFLOW_NOISE
from tools.loopback_mlflow import loopback_mlflow
from vlmflow.job.loop import StopSignal
from vlmflow.job.model_folder import find_model
from vlmflow.job.progress import LineDisplay
from vlmflow.job.registered_model import resolve_registered
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import StoreOpener

pytestmark = [*MLFLOW_NOISE, pytest.mark.process, pytest.mark.slow]  # 20 s of MLflow starting


def test_a_copy_on_a_server_is_all_that_another_machine_needs(log, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINT, folder)
    with loopback_mlflow(tmp_path / "server") as url:
        values = {"copy_weights": True, "name": "shapes", "alias": "champion"}
        logged = log(model=str(folder), tracking={"uri": url}, **values)
        shutil.rmtree(folder)
        spec = JobSpec.parse(
            {
                "manifest": "m.jsonl",
                "output": "out",
                "model": "models:/shapes@champion",
                "model_cache": str(tmp_path / "cache"),
                "tracking": {"uri": url},
            }
        )
        spec, registered = resolve_registered(spec, print)
        display, stop = LineDisplay(), StopSignal()
        found = find_model(spec, StoreOpener(), registered, display=display, stop=stop)
    assert found.digest == logged.stored.digest and found.path.is_relative_to(tmp_path / "cache")
    weights = "model.safetensors"
    assert (found.path / weights).read_bytes() == (CHECKPOINT / weights).read_bytes()
