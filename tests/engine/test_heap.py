"""Large memory that is freed and taken again is no new memory; what stays is not looked at."""

import subprocess
import sys

import pytest

# Prints the page faults of a step that takes 64 MB, when it is made again and again.
SCRIPT = """
import resource
import numpy as np
from vlmflow_engine.heap import keep_freed_memory
if {is_kept}:
    keep_freed_memory()
def num_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(1 << 23)
before = num_faults()
for _ in range(4):
    np.ones(1 << 23)
print((num_faults() - before) // 4)
"""


def _faults(*, is_kept: bool) -> int:
    script = SCRIPT.format(is_kept=is_kept)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_what_a_step_frees_is_kept_for_the_next():
    given_back = _faults(is_kept=False)
    kept = _faults(is_kept=True)
    assert kept < given_back / 4, (kept, given_back)


def test_the_collector_looks_at_none_of_the_objects_that_stay():
    script = """
import gc
from vlmflow_engine.heap import objects_that_stay
before = gc.get_stats()
with objects_that_stay():
    made = [[number] for number in range(100_000)]
    assert gc.get_stats() == before
later = []
gc.collect()
known = {id(thing) for thing in gc.get_objects()}
assert id(later) in known and gc.isenabled()
print(len(known & {id(thing) for thing in made}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "0\n"
