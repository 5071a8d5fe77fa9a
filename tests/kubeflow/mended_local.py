"""kfp.local 2.17 as a pipeline with named outputs needs it: two faults of its loops are mended.

It runs a loop over a task's output only if that output is called `Output`, and it gives the loop's
item to every input of the loop that is another task's output. The backend does neither.
"""

from typing import Any

import pytest
from kfp.local import io
from kfp.local.orchestrator import task_spec_utils
from kfp.pipeline_spec import pipeline_spec_pb2

_CHANNEL = "pipelinechannel--"


def mend_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mend them until the test is over."""
    find = io.IOStore.get_parent_input
    iterate = task_spec_utils.create_parameter_loop_iteration_task_spec

    def get_parent_input(store: io.IOStore, key: str) -> Any:
        try:
            return find(store, key)
        except ValueError:
            for task, outputs in store._task_output_data.items():
                for name, value in outputs.items():
                    if f"{task}-{name}" == key.removeprefix(_CHANNEL):
                        return value
            raise

    def create_iteration(
        task_spec: pipeline_spec_pb2.PipelineTaskSpec, item: Any, loop: str
    ) -> pipeline_spec_pb2.PipelineTaskSpec:
        iteration = iterate(task_spec, item, loop)
        for name, given in task_spec.inputs.parameters.items():
            is_item = name == task_spec.parameter_iterator.item_input
            if given.HasField("task_output_parameter") and not is_item:
                iteration.inputs.parameters[name].CopyFrom(given)
        return iteration

    monkeypatch.setattr(io.IOStore, "get_parent_input", get_parent_input)
    monkeypatch.setattr(
        task_spec_utils, "create_parameter_loop_iteration_task_spec", create_iteration
    )
