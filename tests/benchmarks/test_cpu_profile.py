"""A sample counts for the innermost file of the engine that a thread is in."""

import pytest

from benchmarks.cpu_profile import innermost, kind_of
from vlmflow_engine.generation import GenerationConfig


def test_what_the_engine_calls_counts_with_the_line_that_calls_it(monkeypatch):
    import sys

    seen = []

    def below(*_: object) -> None:
        seen.append(innermost(sys._getframe()))

    monkeypatch.setattr("vlmflow_engine.generation.check_at_least", below)
    GenerationConfig(max_new_tokens=3)
    assert seen and all(file == "generation.py" for file, _ in seen)


def test_a_stack_outside_of_the_engine_is_of_no_file():
    assert innermost(None) == ("", "")


@pytest.mark.parametrize(
    "file, kind",
    [
        ("layers/linear.py", "GEMMs"),
        ("kernels/paged_attention.py", "attention"),
        ("kernels/layer_kv_cache.py", "attention"),
        ("layers/mlp.py", "norms, rotary, activations"),
        ("scheduler/block_manager.py", "planning a step"),
        ("runner/drawer.py", "sampling"),
        ("runner/batch.py", "laying out a step"),
        ("messages.py", "other"),
    ],
)
def test_files_have_kinds(file, kind):
    assert kind_of(file) == kind
