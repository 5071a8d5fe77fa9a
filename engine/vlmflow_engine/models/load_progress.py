"""Tells how far a checkpoint is read: a bar on a terminal, lines in the log elsewhere."""

import logging
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

_log = logging.getLogger(__name__)

_LINE_SECONDS = 10.0


class LoadProgress:
    """Counts bytes from its making to `finish`, which leaves one line in the log."""

    def __init__(self, folder: Path, num_bytes: int) -> None:
        """`num_bytes` is all that may be read; a part may stay unread."""
        self._folder = folder
        self._total = num_bytes
        self._num_tensors = self._num_bytes = 0
        self._start = self._told = time.monotonic()
        # TQDM_DISABLE is set by those who draw on the same terminal, as the job does.
        is_shown = sys.stderr.isatty() and not os.environ.get("TQDM_DISABLE")
        self._bar = (
            tqdm(total=num_bytes, desc="loading", unit="B", unit_scale=True, leave=False)
            if is_shown
            else None
        )

    def add(self, num_bytes: int) -> None:
        """A tensor of so many bytes in the file is read."""
        self._num_tensors += 1
        self._num_bytes += num_bytes
        if self._bar is not None:
            self._bar.update(num_bytes)
        elif time.monotonic() - self._told >= _LINE_SECONDS:
            self._told = time.monotonic()
            share = self._num_bytes / max(1, self._total)
            _log.info("%s: %.0f %% of %s bytes read", self._folder, 100 * share, f"{self._total:,}")

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.close()
        seconds = time.monotonic() - self._start
        _log.info(
            "%s: %s tensors, %s bytes read in %.1f s",
            self._folder,
            f"{self._num_tensors:,}",
            f"{self._num_bytes:,}",
            seconds,
        )
