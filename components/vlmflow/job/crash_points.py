"""Named moments of the protocol at which a test can have the process killed.

VLMFLOW_CRASH_AT=commit-created kills it, as kill -9 would, when it comes to that point for the
first time, commit-created:3 for the third. Without the variable nothing happens.
docs/reliability.md lists the names; its test compares them with the code.
"""

import os
import signal
from collections import Counter

CRASH_VARIABLE = "VLMFLOW_CRASH_AT"

_times_reached: Counter[str] = Counter()


def reached(name: str) -> None:
    """End this process here and now if the environment says so."""
    wanted = os.environ.get(CRASH_VARIABLE)
    if wanted is None:
        return
    _times_reached[name] += 1
    point, _, count = wanted.partition(":")
    if point == name and _times_reached[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
