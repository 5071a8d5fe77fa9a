"""A checkpoint is loaded in little more memory than its weights take, in a fresh process."""

from pathlib import Path

import pytest

from benchmarks.loading import run, write_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is Linux's to tell"
    ),
]


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
def test_the_peak_of_memory_is_that_of_the_weights(stored, tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", 3, stored)  # 200 MB in bfloat16
    result = run("vlmflow", folder)
    assert 0.95 < result["peak_ratio"] <= 1.15
