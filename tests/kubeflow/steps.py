"""A component run as KFP runs it, but for the container: its own command on a real ExecutorInput.

Input and outputs are made and read by kfp's own code.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp.local import executor_input_utils, executor_output_utils, placeholder_utils

from tests.job_processes import JOB_PYTHON


@dataclass(frozen=True)
class Step:
    """What became of a step."""

    code: int
    outputs: dict[str, Any]  # as kfp reads them; empty if it failed
    out: str
    err: str


def run_step(component: Any, root: Path, **inputs: Any) -> Step:
    """Run a component to its end."""
    spec, name = component.pipeline_spec, component.name
    component_spec = spec.components[f"comp-{name}"]
    executor = spec.deployment_spec["executors"][f"exec-{name}"]["container"]
    arguments = {
        key: given.default for key, given in component.component_spec.inputs.items()
    } | inputs
    executor_input = executor_input_utils.construct_executor_input(
        component_spec, arguments, task_root=str(root), block_input_artifact=True
    )
    command = placeholder_utils.replace_placeholders(
        [*executor["command"], *executor["args"]],
        executor_input_utils.executor_input_to_dict(executor_input, component_spec),
        pipeline_resource_name="pipeline",
        task_resource_name=name,
        pipeline_root=str(root.parent),
        unique_pipeline_id="1",
    )
    done = run_command(command)
    if done.returncode:
        return Step(done.returncode, {}, done.stdout, done.stderr)
    outputs = executor_output_utils.get_outputs_for_task(executor_input, component_spec)
    return Step(0, outputs, done.stdout, done.stderr)


def run_command(command: list[str], **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a container's command, by an interpreter that has what the image has."""
    replaced = {"vlmflow": [str(JOB_PYTHON), "-m", "vlmflow"], "python": [str(JOB_PYTHON)]}
    return subprocess.run(
        [*replaced[command[0]], *command[1:]],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def make_job(tmp_path: Path, prompts: list[str] | int = 8, **options: Any) -> dict[str, Any]:
    """Inputs of plan_shards: so many records for the fake engine, which tell no MLflow."""
    texts = [f"question {n}" for n in range(prompts)] if isinstance(prompts, int) else prompts
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    manifest = tmp_path / "shapes.jsonl"
    lines = [
        json.dumps({"id": f"r{n}", "prompt": text, "expected": "x"}) for n, text in enumerate(texts)
    ]
    manifest.write_text("\n".join(lines))
    return {
        "manifest": str(manifest),
        "model": str(model),
        "output": str(tmp_path / "out"),
        "options": json.dumps({"tracking": {"enabled": False}} | options),
    }


def as_inputs(plan: Step) -> dict[str, Any]:
    """What later steps take of a plan."""
    return {name: plan.outputs[name] for name in ("spec", "manifest_sha256")}
