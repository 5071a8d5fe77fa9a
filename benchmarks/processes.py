"""A worker's process, its answer, and the memory that it and its children take."""

import json
import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.request import WorkOrder

_SAMPLE_SECONDS = 0.1


class TreeMemory:
    """The most that a process and all below it had resident at once."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._peak = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Bytes. Pages that processes share count in each of them."""
        self._is_over.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._is_over.wait(_SAMPLE_SECONDS):
            self._peak = max(self._peak, sum(map(_rss, self._tree())))

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def run_worker(python: str, order: WorkOrder, folder: Path) -> dict[str, Any]:
    """Let a worker carry out an order; return its `WorkDone` with `peak_rss_bytes`.

    Ends the benchmark if it fails or did not give each request as many tokens as were asked for.
    """
    order_path, log_path = folder / "order.json", folder / "worker.log"
    order_path.write_text(order.as_json(), encoding="utf-8")
    printed, peak = _run([python, "-m", "benchmarks.worker", str(order_path)], order, log_path)
    done: dict[str, Any] = json.loads(printed.splitlines()[-1])
    wanted = [request.num_new_tokens for request in order.requests]
    if done["num_output_tokens"] != wanted:
        raise SystemExit(
            f"{order.worker}: {done['num_output_tokens']} tokens, where {wanted} were asked for"
        )
    return done | {"peak_rss_bytes": peak}


def worker_environment() -> dict[str, str]:
    """What a process of ours that is measured finds in its environment."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(("engine", "components", ".")),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _run(command: Sequence[str], order: WorkOrder, log_path: Path) -> tuple[str, int]:
    environment = worker_environment() | {"OMP_NUM_THREADS": str(order.num_threads)}
    with log_path.open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        memory = TreeMemory(process.pid)
        try:
            printed, _ = process.communicate()
        finally:
            process.kill()
            peak = memory.stop()
    if process.returncode:
        tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-15:])
        raise SystemExit(f"{order.worker} ended with exit code {process.returncode}:\n{tail}")
    return printed, peak


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
