"""The process's heap: large memory that comes and goes, and objects that stay."""

import ctypes
import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST = 1 << 30


def keep_freed_memory() -> None:
    """From now on let the heap keep what one step frees for the next one.

    glibc gives large memory back to the system, which hands it out again page by page, zeroed: that
    took 50 ms for 92 MB of a layer, and 3 ms when kept. For processes of our own, and once a model
    is loaded: what loading frees shall be given back.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library, which has its own ways
    for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        if not mallopt(parameter, _LARGEST):
            _log.info("the heap gives large memory back after each step")


@contextmanager
def objects_that_stay() -> Iterator[None]:
    """The garbage collector looks at nothing that is made meanwhile, neither now nor later.

    For the imports of a process of our own: torch and transformers make 650,000 objects, which it
    would go through again and again while they are imported (a quarter of the time), once more
    whenever it looks at all there are, and at the end.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
