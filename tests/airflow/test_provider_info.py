"""The provider as Airflow sees it."""

import json
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec

import jsonschema
import pytest

from tests.job_processes import ROOT, SOURCES
from vlmflow import airflow as provider
from vlmflow.airflow import get_provider_info

INFO = get_provider_info()


def test_the_provider_fits_airflows_own_schema():
    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())
    jsonschema.validate(INFO, schema)


def test_airflow_lists_it():
    """What `airflow providers list` shows, and the connection and the links that come of it."""
    from airflow.providers_manager import ProvidersManager
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

    manager = ProvidersManager()
    assert manager.providers["vlmflow"].version == INFO["versions"][0]
    assert set(INFO["extra-links"]) <= set(manager.extra_links_class_names)
    assert "vlmflow" in ProvidersManagerTaskRuntime().hooks


def test_every_key_is_one_that_the_schema_knows():
    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())
    # Not in the schema, which allows others: what the providers manager reads besides.
    assert INFO.keys() <= schema["properties"].keys() | {"versions"}


def test_the_entry_point_names_it():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    [line] = config["options.entry_points"]["apache_airflow_provider"].split("\n")[1:]
    module, _, name = line.partition("=")[2].strip().partition(":")
    assert getattr(import_module(module), name)() == INFO
    assert INFO["package-name"] == config["metadata"]["name"]


@pytest.mark.parametrize("kind", ["operators", "sensors", "triggers", "hooks"])
def test_modules_are_there(kind):
    for module in INFO[kind][0]["python-modules"]:
        assert find_spec(module) is not None, module


def test_all_modules_of_ours_are_told():
    kinds = ("operators", "sensors", "triggers")
    told = {module for kind in kinds for module in INFO[kind][0]["python-modules"]}
    folder = ROOT / "components" / "vlmflow" / "airflow"
    defining = [
        path
        for kind in kinds
        for path in (folder / kind).glob("*.py")
        if re.search(r"^class (VLM|\w+Trigger\()", path.read_text(), re.MULTILINE)
    ]
    assert {f"vlmflow.airflow.{path.parent.name}.{path.stem}" for path in defining} == told


def test_classes_that_are_named_can_be_loaded():
    paths = [
        *INFO["extra-links"],
        *(item["class-name"] for item in INFO["task-decorators"]),
        *(item["hook-class-name"] for item in INFO["connection-types"]),
    ]
    for path in paths:
        module, _, name = path.rpartition(".")
        assert callable(getattr(import_module(module), name)), path


def test_links_that_operators_have_are_told():
    from vlmflow.airflow.operators.job_operator import JobOperatorMixin

    links = {type(link) for link in JobOperatorMixin.operator_extra_links}
    assert {f"{link.__module__}.{link.__qualname__}" for link in links} == set(INFO["extra-links"])


def test_names_are_handed_on_when_they_are_asked_for():
    for name in provider.__all__:
        assert callable(getattr(provider, name)), name
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        _ = provider.nothing_of_ours


_PARSE = """
import sys
for name in ("torch", "mlflow", "transformers", "triton", "vlmflow.cli"):
    sys.modules[name] = None
import time
from airflow.sdk import DAG, Asset, BaseOperatorLink, BaseSensorOperator, BranchMixIn
from airflow.sdk.bases.decorator import DecoratedOperator
Asset("s3://b/any")  # loads Amazon's provider, whoever makes it
before, began = set(sys.modules), time.process_time()  # of a machine that does other things too
from vlmflow.airflow import (
    VLMBatchInferenceOperator, VLMCompareOperator, VLMEvaluateOperator, VLMManifestSensor,
    VLMMergeOperator, VLMPlanShardsOperator, results_asset,
)
with DAG("d", schedule=None):
    job = dict(manifest="s3://b/m.jsonl", model="m", output="s3://b/out", name="m")
    wait = VLMManifestSensor(task_id="wait", manifest="s3://b/m.jsonl", deferrable=True)
    plan = VLMPlanShardsOperator(task_id="plan", num_shards=4, **job)
    infer = VLMBatchInferenceOperator.partial(task_id="infer", **job).expand_kwargs(plan.output)
    merge = VLMMergeOperator(task_id="merge", outlets=[results_asset("s3://b/out", "m")], **job)
    score = VLMEvaluateOperator(task_id="score", results=merge.output)
    gate = VLMCompareOperator(
        task_id="gate", baseline="s3://b/old", candidate="s3://b/out/m", gate="accuracy >= 0",
        pass_task_ids="publish", fail_task_ids="alert",
    )
    wait >> plan >> infer >> merge >> score >> gate
seconds = time.process_time() - began
new = sorted({m.partition(".")[0] for m in set(sys.modules) - before})
heavy = sorted({"kubernetes", "pyarrow", "PIL", "jsonschema", "openlineage"} & set(new))
print(f"{seconds:.3f} {heavy}")
"""


def test_a_dag_of_ours_is_parsed_within_a_second_and_without_torch():
    done = subprocess.run(
        [sys.executable, "-c", _PARSE],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(SOURCES)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seconds, _, heavy = done.stdout.strip().splitlines()[-1].partition(" ")
    assert float(seconds) < 1.0
    assert heavy == "[]"
