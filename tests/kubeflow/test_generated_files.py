"""What is checked in for Kubeflow is what the sources make, and kfp can read it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp import components
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from tools.kubeflow_files import COMPILED, COMPONENTS, NAMES, generated, load_component

PIPELINES = sorted(COMPILED.glob("*.yaml"))
SIGNATURES = Path(__file__).with_name("golden") / "signatures.json"


@pytest.fixture(scope="module")
def files() -> dict[Path, str]:
    return generated()


def test_what_is_checked_in_is_what_make_compile_writes(files):
    there = {*COMPILED.glob("*"), *COMPONENTS.glob("*/README.md")}
    assert there == set(files)
    for path, text in files.items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run `make compile`"


def documents(path: Path) -> tuple[dict, dict]:
    pipeline, platform = yaml.safe_load_all(path.read_text())
    return pipeline, platform


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_kfps_own_parser_reads_both_documents(path):
    loaded = components.load_component_from_text(path.read_text())
    assert loaded.name in ("vlm-batch-inference", "vlm-compare")
    pipeline, platform = documents(path)
    json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for config in executors.values():
        json_format.ParseDict(config, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
    # What is set for an executor is set for one that there is.
    assert set(executors) <= set(pipeline["deploymentSpec"]["executors"])


def parameters_of(value: object) -> Iterator[str]:
    """The parameters of the surrounding DAG that something takes."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name == "componentInputParameter":
                yield item
            else:
                yield from parameters_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from parameters_of(item)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_no_task_takes_a_parameter_that_its_dag_has_not(path):
    """kfp 2.17 forgets those of resources in loops and conditions; a driver fails of it."""
    pipeline, platform = documents(path)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    dags = [pipeline["root"], *(c for c in pipeline["components"].values() if "dag" in c)]
    found = 0
    for dag in dags:
        definitions = dag.get("inputDefinitions", {}).get("parameters", {})
        known = set(definitions) | {
            task["parameterIterator"]["itemInput"]
            for task in dag["dag"]["tasks"].values()
            if "parameterIterator" in task
        }
        for name, task in dag["dag"]["tasks"].items():
            component = pipeline["components"][task["componentRef"]["name"]]
            config = executors.get(component.get("executorLabel"), {})
            taken = {*parameters_of(task), *parameters_of(config)}
            assert taken <= known, name
            found += len(taken)
    assert found > 10


def test_only_the_gpu_task_asks_for_a_gpu_and_all_but_the_plan_may_be_cached():
    pipeline, platform = documents(COMPILED / "vlm_batch_inference_pipeline.yaml")
    executors = pipeline["deploymentSpec"]["executors"]
    with_gpu = [
        name
        for name, executor in executors.items()
        if "accelerator" in executor.get("container", {}).get("resources", {})
    ]
    assert with_gpu == ["exec-batch-inference"]
    config = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][with_gpu[0]]
    assert config["emptyDirMounts"][0]["mountPath"] == "/dev/shm"
    assert config["emptyDirMounts"][0]["medium"] == "Memory"
    tasks = pipeline["root"]["dag"]["tasks"]
    assert tasks["plan-shards"]["cachingOptions"] == {}
    for name in ("merge-report", "evaluate", "compare-gate"):
        digest = tasks[name]["inputs"]["parameters"]["manifest_sha256"]
        assert digest["taskOutputParameter"] == {
            "outputParameterKey": "manifest_sha256",
            "producerTask": "plan-shards",
        }


def signature(name: str) -> dict:
    spec = load_component(name).component_spec
    return {
        "inputs": {n: [i.type, i.default if i.optional else None] for n, i in spec.inputs.items()},
        "outputs": {n: o.type for n, o in spec.outputs.items()},
    }


def test_signatures_are_frozen():
    """Other people's pipelines call them: an input may be added with a default, nothing else."""
    assert {name: signature(name) for name in NAMES} == json.loads(SIGNATURES.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_component_says_every_input_and_output_in_its_readme_and_its_docstring(name):
    component = load_component(name)
    readme = (COMPONENTS / name / "README.md").read_text()
    spec = component.component_spec
    for parameter in (*spec.inputs, *spec.outputs):
        assert f"| `{parameter}` |" in readme
        assert f"\n        {parameter}: " in component.pipeline_func.__doc__
    assert component.component_spec.implementation.container.args[:2] == [
        "--executor-input",
        "{{$}}",
    ]
