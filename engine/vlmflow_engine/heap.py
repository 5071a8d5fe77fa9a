"""How the system deals with a process's large memory: what comes and goes, and what stays."""

import ctypes
import logging
import mmap

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


def use_large_pages(address: int, num_bytes: int) -> None:
    """Ask for pages of 2 MiB for memory that has not been written to, where Linux has them.

    Weights are read from end to end in each step: with pages of 4 KiB the CPU looks up an address
    for each of them.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    size = address + num_bytes - start
    if advice is not None and size > 0:
        # A system that refuses goes on with small ones.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice)
