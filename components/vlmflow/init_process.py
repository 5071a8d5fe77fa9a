"""What the first process of a container has to do: reap orphans, and pass signals on.

A process with PID 1 is not like others. The kernel drops signals that it has no handler for, so
that a SIGTERM before the job listens, or to a command that never does, would be lost until the
SIGKILL; and orphans of the whole container become its children, who stay zombies unless it waits
for them. So it forks, and is only that.
"""

import os
import signal
import sys
from contextlib import suppress

_PASSED_ON = {
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
_STDIN = 0


def become_init() -> None:
    """Fork. Return in the child; the parent leaves with the child's exit code when it ends.

    To be called before there are threads, and before anything is imported that costs memory.
    """
    watched = _PASSED_ON | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    child = os.fork()
    if child == 0:
        _take_terminal()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        number = signal.sigwait(watched)
        if number != signal.SIGCHLD:
            with suppress(ProcessLookupError):
                os.kill(child, number)
        elif (code := _reap(child)) is not None:
            # What is left is ended by the kernel, with the container.
            os._exit(code)


def _reap(child: int) -> int | None:
    """Wait for all who have ended; return the child's exit code, as a shell would, if it has."""
    code = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                code = os.waitstatus_to_exitcode(ended[1])
    return 128 - code if code is not None and code < 0 else code


def _take_terminal() -> None:
    """Be a process group of one's own: a terminal's Ctrl-C then comes once, not by init too."""
    os.setpgid(0, 0)
    if sys.stdin is None or not os.isatty(_STDIN):
        return
    # Who is not in the foreground is stopped for asking to be.
    handler = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with suppress(OSError):
        os.tcsetpgrp(_STDIN, os.getpgrp())
    signal.signal(signal.SIGTTOU, handler)
