"""The C++ kernels as a library of functions: found or built once, then called through ctypes.

    VLMFLOW_CPU_KERNELS=0              do without them
    VLMFLOW_CPU_KERNELS_DIR=DIR        take the library that `build --into DIR` has made
    VLMFLOW_CPU_KERNELS_LEVEL=avx2     an instruction set below the CPU's best, to compare and test

A library is looked for in that folder, beside this file, and in the user's cache, where it is built
if there is a compiler. Without one all is computed in plain torch, and the log says so once.
"""

import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from vlmflow_engine.kernels.cpu.build import BuildError, Sources, cached_library

_log = logging.getLogger(__name__)

# As levels.h numbers them; "plain" runs on every CPU of its architecture.
LEVELS = ("plain", "avx2", "avx512", "avx512_bf16")


class CpuLibrary:
    """The functions of one library file. It holds nothing of a call: any thread may make one."""

    def __init__(self, path: Path) -> None:
        """Load a file. Raises OSError, with the linker's words, if it cannot be loaded."""
        _share_openmp()
        self.path = path
        self._library = ctypes.CDLL(str(path))
        self.best_level = LEVELS[self.function("vlmflow_best_level", result=ctypes.c_int)()]
        self._use_level = self.function("vlmflow_use_level", ctypes.c_int)
        self._level = self.best_level

    @property
    def level(self) -> str:
        """The instruction set that its functions use, one of LEVELS."""
        return self._level

    @property
    def levels(self) -> tuple[str, ...]:
        """The instruction sets that this CPU has, the best one last."""
        return LEVELS[: LEVELS.index(self.best_level) + 1]

    def use_level(self, level: str) -> None:
        """From now on compute with an instruction set, or with the CPU's best below it."""
        self._level = level if level in self.levels else self.best_level
        self._use_level(LEVELS.index(self._level))

    def function(self, name: str, *arguments: Any, result: Any = None) -> Callable[..., Any]:
        """Return a function of the library, by its C name and the ctypes of its arguments.

        ctypes releases the interpreter's lock for as long as it computes.
        """
        function = getattr(self._library, name)
        function.argtypes = arguments
        function.restype = result
        found: Callable[..., Any] = function
        return found


_lock = threading.Lock()


def cpu_library() -> CpuLibrary | None:
    """Return the library, found or built by the first call; None where there is none.

    Never raises: what cannot be built is logged, and computed in plain torch.
    """
    with _lock:
        return _load()


@cache
def _load() -> CpuLibrary | None:
    if os.environ.get("VLMFLOW_CPU_KERNELS") == "0":
        _log.info("VLMFLOW_CPU_KERNELS=0: the CPU computes in plain torch")
        return None
    try:
        library = CpuLibrary(_find())
    except (BuildError, OSError, AttributeError) as error:
        _log.warning(
            "without C++ kernels the CPU computes in plain torch, which is slower: %s; "
            "install g++, or set VLMFLOW_CPU_KERNELS_DIR to a folder with a library built by "
            "`python -m vlmflow_engine.kernels.cpu.build --into DIR`",
            error,
        )
        return None
    level = os.environ.get("VLMFLOW_CPU_KERNELS_LEVEL")
    if level is not None and level not in LEVELS:
        _log.warning(
            "VLMFLOW_CPU_KERNELS_LEVEL=%r is not known, and ignored; known are %s",
            level,
            ", ".join(LEVELS),
        )
    elif level is not None:
        library.use_level(level)
    _log.info("C++ kernels: %s, %s", library.level, library.path)
    return library


def _find() -> Path:
    sources = Sources()
    name = sources.library_name()
    folder = os.environ.get("VLMFLOW_CPU_KERNELS_DIR")
    places = [Path(folder)] if folder else []
    for place in (*places, sources.folder):
        if (place / name).exists():
            return place / name
    if folder:
        _log.warning(
            "VLMFLOW_CPU_KERNELS_DIR=%r has no %s, which is what this version wants; build it by "
            "`python -m vlmflow_engine.kernels.cpu.build --into DIR`",
            folder,
            name,
        )
    start = time.monotonic()
    path = cached_library(sources)
    seconds = time.monotonic() - start
    if seconds > 1:
        _log.info("the C++ kernels were compiled in %.0f s, and are kept in %s", seconds, path)
    return path


def _share_openmp() -> None:
    """Let the library find the OpenMP that torch has loaded, and no other that lies about.

    Wheels bring their own: with sentencepiece there are two in the process.
    """
    import torch  # late: who has no library needs none

    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    paths = {Path(line.split(maxsplit=5)[-1]) for line in lines if "omp" in line}
    runtimes = {path for path in paths if path.name.startswith(("libgomp", "libiomp", "libomp"))}
    folder = Path(torch.__file__).parent
    for path in sorted({path for path in runtimes if path.is_relative_to(folder)} or runtimes):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
