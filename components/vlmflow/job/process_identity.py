"""Which process on which machine: a pid alone is given out again, and hosts share names."""

import os
import socket
from pathlib import Path
from typing import Any

import psutil


def describe_process(pid: int | None = None) -> dict[str, Any]:
    """What knows a process of this machine again; this one without a pid.

    Raises psutil.NoSuchProcess.
    """
    process = psutil.Process(pid)
    return {
        "host": socket.gethostname(),
        "boot_id": boot_id(),
        "pid": process.pid,
        "started": _start_of(process),
    }


def is_here(described: dict[str, Any]) -> bool:
    """Whether the process was one of this machine since it booted, and of this container."""
    return (described["host"], described["boot_id"]) == (socket.gethostname(), boot_id())


def is_running(described: dict[str, Any]) -> bool:
    """Whether a process that `is_here` still runs."""
    try:
        process = psutil.Process(described["pid"])
        # A pid is given out again; a process is known by its start too.
        started = _start_of(process)
        is_zombie = process.status() == psutil.STATUS_ZOMBIE
        return abs(started - described["started"]) < 1.0 and not is_zombie
    except psutil.NoSuchProcess:
        return False


def boot_id() -> str:
    """Tells hosts of the same name apart, and containers by their process namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(process: psutil.Process) -> float:
    """Tell processes of the same id apart, in seconds since whenever.

    On Linux since the boot, as the kernel counts it: the time of day at which a process began moves
    when the clock is set, and a worker that lives would be taken for one that is gone.
    """
    try:
        after_name = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2]
        return int(after_name.split()[19]) / os.sysconf("SC_CLK_TCK")
    except OSError:
        started: float = process.create_time()
        return started
