"""kfp.local 2.17 as a pipeline with named outputs needs it: three faults of its loops are mended.

It runs a loop over a task's output only if that output is called `Output`, it gives the loop's item
to every input of the loop that is another task's output, and it has all tasks of a loop write their
outputs to the same files. The backend does none of it.
"""

import builtins
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from kfp.local import executor_input_utils, io
from kfp.local.orchestrator import task_spec_utils
from kfp.pipeline_spec import pipeline_spec_pb2

_CHANNEL = "pipelinechannel--"


@contextmanager
def mended_loops() -> Iterator[None]:
    """Mend them until the block ends."""
    find = io.IOStore.get_parent_input
    iterate = task_spec_utils.create_parameter_loop_iteration_task_spec
    print_, handlers = builtins.print, list(logging.getLogger().handlers)
    make_root = executor_input_utils.construct_local_task_root
    roots: Counter[str] = Counter()
    lock = threading.Lock()  # tasks of a loop run in threads

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

    def construct_root(*names: str, **more: str) -> str:
        root = make_root(*names, **more)
        with lock:
            roots[root] += 1
            return root if roots[root] == 1 else f"{root}-{roots[root]}"

    with (
        patch.object(io.IOStore, "get_parent_input", get_parent_input),
        patch.object(
            task_spec_utils, "create_parameter_loop_iteration_task_spec", create_iteration
        ),
        patch.object(executor_input_utils, "construct_local_task_root", construct_root),
    ):
        try:
            yield
        finally:
            # Threads of a loop put these back in whatever order they end in.
            builtins.print = print_
            logging.getLogger().handlers[:] = handlers
