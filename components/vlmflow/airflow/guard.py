"""Run a command, and see to its end whatever becomes of who wanted it.

    python -I -S guard.py GRACE_SECONDS LIFELINE EXIT_FILE COMMAND...

The command gets a process group of its own. It is told to stop (SIGTERM to the group, once) when
this process is, and when the pipe LIFELINE (a descriptor, or -) is closed, which is what happens
when a worker is killed by SIGKILL and can tell nobody. What is left after the grace is killed, with
all that it started. EXIT_FILE (a path, or -) gets the exit code, for those who are not the parent;
whoever is the parent gets it as ours.

Only the standard library and nothing of site-packages: it costs 15 ms and 8 MB.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from select import select

_LINGER_SECONDS = 3.0  # for what a command leaves behind to end by itself
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(arguments: list[str]) -> int:
    """Return the command's exit code, as a shell would."""
    grace, lifeline, exit_file, *command = arguments
    # Orphans below us become our children, so that none is missed at the end.
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    bell, ringer = os.pipe()
    os.set_blocking(ringer, False)
    signal.set_wakeup_fd(ringer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(command, process_group=0, preexec_fn=_die_with_parent(os.getpid()))
    code = _watch(child, bell, None if lifeline == "-" else int(lifeline), float(grace))
    _end_leftovers(0.0 if code == -signal.SIGKILL else _LINGER_SECONDS)
    code = code if code >= 0 else 128 - code
    if exit_file != "-":
        written = Path(f"{exit_file}.{os.getpid()}")
        written.write_text(f"{code}\n")
        written.replace(exit_file)
    return code


def _watch(child: subprocess.Popen[bytes], bell: int, lifeline: int | None, grace: float) -> int:
    deadline: float | None = None
    watched = [bell] if lifeline is None else [bell, lifeline]
    while (code := child.poll()) is None:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = select(watched, [], [], timeout)[0]
        rung = os.read(bell, 64) if bell in ready else b""
        is_told = any(number in rung for number in (signal.SIGTERM, signal.SIGINT))
        if lifeline in ready:
            watched = [bell]
        if deadline is None and (is_told or lifeline in ready):
            deadline = time.monotonic() + grace
            _signal_group(child.pid, signal.SIGTERM)
        elif deadline is not None and time.monotonic() >= deadline:
            _signal_group(child.pid, signal.SIGKILL)
            return child.wait()
    return code


def _end_leftovers(seconds: float) -> None:
    """Wait a while for what outlived the command, then kill it."""
    deadline = time.monotonic() + seconds
    while left := _descendants(os.getpid()):
        if time.monotonic() >= deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)


def _descendants(root: int) -> list[int]:
    """All below a process, as /proc says; nothing on a system without it."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
            if state != "Z" or int(parent) == root:
                parents[int(entry.parent.name)] = int(parent)
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _die_with_parent(parent: int) -> Callable[[], None]:
    """Let the command be told to stop if this process is killed by SIGKILL itself."""

    def prepare() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we asked
            os._exit(143)

    return prepare


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
