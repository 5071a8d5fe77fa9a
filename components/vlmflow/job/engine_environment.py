"""The environment that the engine's process starts in: how its threads wait, and how many it has.

The user's own settings are never changed. OpenMP reads them once, when torch loads it, so they are
set here, by the process that starts the engine and has no torch itself.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path

# Whoever sets one of these has decided how threads wait, for whatever OpenMP torch brings.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_CGROUPS = Path("/sys/fs/cgroup")


def engine_environment(
    environment: Mapping[str, str] = os.environ, cgroups: Path = _CGROUPS
) -> dict[str, str]:
    """Return a copy of an environment with what an engine beside other processes wants.

    cgroups  where the system keeps this container's limits
    """
    # PYTHONUNBUFFERED, TQDM_DISABLE: the terminal is the job's own to draw on.
    made = {**environment, "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
    # libgomp's threads spin for milliseconds between two pieces of work, as if nobody else wanted
    # the core; but here the job and the workers that decode images do. Worse, a piece of work ends
    # with its last thread, and that one may wait for the core that another one spins on. To sleep
    # costs a wake-up a piece, some 20 us; to spin made the demo's engine three to ten times slower.
    if not any(name in environment for name in _WAITING):
        made["OMP_WAIT_POLICY"] = "passive"
    # Threads are made for all cores that a process may run on. A container's limit on CPU time is
    # none on cores: with more threads than it pays for, all of them are halted in every period.
    limit = _cpu_limit(cgroups)
    if limit is not None and "OMP_NUM_THREADS" not in environment:
        num_threads = max(1, math.floor(limit))
        if num_threads < len(os.sched_getaffinity(0)):
            made["OMP_NUM_THREADS"] = str(num_threads)
    return made


def _cpu_limit(cgroups: Path) -> float | None:
    """The CPUs' worth of time that a container may use; None where there is no limit."""
    try:
        quota, period = (cgroups / "cpu.max").read_text().split()  # cgroup v2
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or "max"
        pass
    try:  # cgroup v1; -1: no limit
        quota = (cgroups / "cpu" / "cpu.cfs_quota_us").read_text()
        period = (cgroups / "cpu" / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):
        return None
