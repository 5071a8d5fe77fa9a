"""Locks between processes, which the kernel gives back when their holder dies."""

import fcntl
import os
import weakref
from pathlib import Path


class FileLock:
    """A lock on a file, held until `release` or until nobody holds this object."""

    def __init__(self, path: Path, *, is_shared: bool = False) -> None:
        """Take it at once. Raises BlockingIOError if another has it, OSError if there is none."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._close = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            self._close()
            raise

    def release(self) -> None:
        self._close()
