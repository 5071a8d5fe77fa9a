"""Engines of token ids alone, made and run to their end."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.engine import Engine
from vlmflow_engine.models.registry import read_config
from vlmflow_engine.request import Request


def make_engine(folder: Path, **config: Any) -> Engine:
    """An engine in float32 that nothing but a length ends, for a few short sequences."""
    asked = {"dtype": "float32", "num_gpu_blocks": 40, "block_size": 16, "max_batch_size": 4}
    return Engine(
        folder,
        read_config(folder),
        PytorchEngineConfig(**asked | config),
        None,
        eos_token_ids=frozenset(),
        rows_per_image=0,
    )


def answers(engine: Engine, requests: Iterable[Request]) -> dict[int, list[int]]:
    """The output tokens of each request, by its id."""
    for request in requests:
        engine.add_request(request)
    finished: dict[int, list[int]] = {}
    while engine.num_unfinished:
        for sequence in engine.step():
            if sequence.finish_reason is not None:
                finished[sequence.request.request_id] = sequence.output_token_ids
    return finished
