"""How the process's heap deals with large memory that comes and goes."""

import ctypes
import logging

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
