"""A checkpoint is loaded in little more memory than its weights and its largest matrix take.

In a fresh process, as the engine loads it: a matrix is read, and packed to where it stays.
"""

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
def test_the_peak_of_memory_is_that_of_the_weights_and_a_matrix(stored, tmp_path):
    # 202 MB in bfloat16, of which the output head is 66.
    folder = write_checkpoint(tmp_path / "checkpoint", 3, stored)
    result = run("vlmflow", folder)
    assert 0.95 < result["peak_ratio"] <= 1.15 + 66 / 202
