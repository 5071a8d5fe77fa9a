"""Several GPUs on one machine: a worker of the job for each, over its shards."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from vlmflow.job.errors import (
    EXIT_BAD_INPUT,
    EXIT_COMPLETE,
    EXIT_ENGINE,
    EXIT_FAILURES,
    EXIT_RESUMABLE,
    JobError,
    SpecError,
)
from vlmflow.job.loop import StopSignal
from vlmflow.job.spec import JobSpec
from vlmflow.tracking.nvml import Nvml

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_POLL_SECONDS = 0.1
_VISIBLE = "CUDA_VISIBLE_DEVICES"
# A GPU that is done early finds shards of a slower one to do.
_SHARDS_PER_GPU = 4
# Which of the workers' exit codes is the job's, where none of them has ended well.
_GRAVEST_FIRST = (EXIT_BAD_INPUT, EXIT_FAILURES, EXIT_ENGINE, EXIT_RESUMABLE)


class WorkersError(JobError):
    """None of the workers has ended well; each has said why."""

    def __init__(self, num_workers: int, exit_code: int) -> None:
        super().__init__(
            f"none of the {num_workers} workers has seen the job to its end; what is committed "
            "stays, and the same command goes on from there"
        )
        self.exit_code = exit_code  # type: ignore[misc]  # that of the gravest


def find_gpus(asked: str) -> list[str]:
    """Names of GPUs, as CUDA_VISIBLE_DEVICES has them.

    asked  "all", how many, or names with commas between them: "0,2"
    Raises SpecError for what is no such thing, and for more GPUs than there are.
    """
    if re.fullmatch(r"[A-Za-z0-9-]+(,[A-Za-z0-9-]+)+", asked):
        names = asked.split(",")
        if len(set(names)) < len(names):
            raise SpecError(f"--gpus {asked} names a GPU twice")
        return names
    if asked != "all" and not re.fullmatch("[1-9][0-9]*", asked):
        raise SpecError(
            f"--gpus must be all, how many, or several of them by name such as 0,2; got {asked!r}"
        )
    present = _present()
    if not present:
        raise SpecError(f"--gpus {asked}: there is no NVIDIA GPU here, or no driver for it")
    count = len(present) if asked == "all" else int(asked)
    if count > len(present):
        raise SpecError(f"--gpus {count}, but there are {len(present)}")
    return present[:count]


def for_gpus(spec: JobSpec, num_gpus: int) -> JobSpec:
    """The spec in as many shards as keep so many GPUs busy, unless it says how many."""
    if spec.num_shards > 1 or num_gpus == 1:
        return spec
    return spec.model_copy(update={"num_shards": _SHARDS_PER_GPU * num_gpus})


def run_workers(
    spec: JobSpec, gpus: Sequence[str], *, stop: StopSignal, say: Callable[[str], None]
) -> None:
    """Run a worker on each GPU until all of the job is done.

    A worker that fails leaves its shards to the others. Raises WorkersError if none of them has
    seen the job to its end.
    """
    workers = [_Worker(spec, gpu) for gpu in gpus]
    readers = [threading.Thread(target=worker.tell, args=(say,)) for worker in workers]
    for reader in readers:
        reader.start()
    num_told = 0
    while any(worker.process.poll() is None for worker in workers):
        if num_told < stop.count:
            num_told += 1
            for worker in workers:
                worker.process.terminate()
        time.sleep(_POLL_SECONDS)
    for reader in readers:
        reader.join()
    codes = [worker.process.wait() for worker in workers]
    for gpu, code in zip(gpus, codes, strict=True):
        if code != EXIT_COMPLETE:
            say(f"the worker of GPU {gpu} ended with exit code {code}")
    if EXIT_COMPLETE not in codes:
        known = (code for code in _GRAVEST_FIRST if code in codes)
        raise WorkersError(len(gpus), next(known, EXIT_ENGINE))


class _Worker:
    """`vlmflow run --worker` in a process that sees one GPU."""

    def __init__(self, spec: JobSpec, gpu: str) -> None:
        self._gpu = gpu
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vlmflow", "run", "--spec", "-", "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # the summary, which is told once, at the end
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, _VISIBLE: gpu},
            # A terminal's Ctrl-C comes by way of this process, or it would count as two.
            process_group=0,
            preexec_fn=_end_with_parent,
        )
        assert self.process.stdin is not None
        # Not by the command line, where everybody on the machine can read a tracking URI.
        self.process.stdin.write(spec.canonical_json())
        self.process.stdin.close()

    def tell(self, say: Callable[[str], None]) -> None:
        """Hand on what it says, until it ends."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            say(f"GPU {self._gpu}: {line.rstrip()}")


def _end_with_parent() -> None:
    """Be told to stop when whoever started this process is gone, by SIGKILL say."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _present() -> list[str]:
    visible = os.environ.get(_VISIBLE)
    if visible is not None:
        return [name for name in visible.split(",") if name]
    try:
        return [str(index) for index in range(len(Nvml().names()))]
    except OSError:
        return []
