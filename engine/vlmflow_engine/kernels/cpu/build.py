"""Build the C++ kernels of the CPU: once for a compiler and these sources, then from a cache.

    python -m vlmflow_engine.kernels.cpu.build --into DIR      before it is needed, as an image does

The library is for every CPU of its architecture: a function is compiled for each instruction set
(levels.h), and the CPU is asked which to call. Its name holds a hash of all it is made of, so
a library of other sources is never loaded. It links no OpenMP: library.py finds torch's.
"""

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent
# No instruction set is named: what runs on another CPU of the family must not depend on this one.
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fopenmp", "-fno-exceptions", "-fno-rtti")
# Where masks stand in for infinities and NaN may lie in unused memory, only this much is relaxed.
_FLOAT_FLAGS = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
_WARNINGS = ("-Wall", "-Wextra", "-Werror=return-type", "-Wno-psabi", "-Wno-ignored-attributes")
_TIMEOUT_SECONDS = 600


class BuildError(Exception):
    """There is no library, and the message says why in a sentence."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What a library is made of, but for the compiler."""

    folder: Path = _FOLDER
    flags: tuple[str, ...] = ()  # beside our own, such as a sanitizer's

    @property
    def units(self) -> list[Path]:
        """The files that are compiled; each becomes an object."""
        return sorted(self.folder.glob("*.cpp"))

    def library_name(self, compiler_version: str = "") -> str:
        """The file's name. A library that was built elsewhere has none of a compiler in it."""
        digest = hashlib.sha256()
        for part in (platform.machine(), compiler_version, *self.all_flags):
            digest.update(part.encode() + b"\0")
        for path in sorted([*self.units, *self.folder.glob("*.h")]):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return f"libvlmflow_cpu-{digest.hexdigest()[:16]}.so"

    @property
    def all_flags(self) -> tuple[str, ...]:
        return (*_FLAGS, *_FLOAT_FLAGS, *_WARNINGS, *self.flags)


def cache_folder() -> Path:
    """Where libraries are kept that were built when they were first needed."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return Path(caches).expanduser() / "vlmflow" / "kernels"


def cached_library(sources: Sources | None = None) -> Path:
    """Return the library of this machine's compiler, built now if it is not in the cache.

    Raises BuildError where there is no compiler, or it fails, or the cache cannot be written.
    """
    sources = sources or Sources()
    compiler = find_compiler()
    path = cache_folder() / sources.library_name(compiler_version(compiler))
    if path.exists():
        return path
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            if not path.exists():  # else another process has built it meanwhile
                compile_library(compiler, sources, path)
    except OSError as error:
        raise BuildError(f"{path.parent} cannot hold what is compiled: {error}") from error
    return path


def find_compiler() -> str:
    """Return the path of g++. Raises BuildError if there is none."""
    path = shutil.which("g++")
    if path is None:
        raise BuildError("there is no g++ on the PATH")
    return path


def compiler_version(compiler: str) -> str:
    """Return the first line that a compiler says of itself."""
    return _run([compiler, "--version"]).partition("\n")[0]


def compile_library(compiler: str, sources: Sources, path: Path) -> None:
    """Compile all units side by side and put the library in its place, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        objects = [Path(scratch) / f"{unit.stem}.o" for unit in sources.units]

        def compile_unit(unit: Path, target: Path) -> None:
            _run([compiler, *sources.all_flags, "-c", str(unit), "-o", str(target)])

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(compile_unit, sources.units, objects))
        linked = Path(scratch) / path.name
        # Without -fopenmp: a second OpenMP beside torch's would be a second pool of threads.
        _run([compiler, "-shared", *sources.flags, *map(str, objects), "-o", str(linked)])
        os.replace(linked, path)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} cannot be used: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
        raise BuildError(f"{command[0]} failed with {done.returncode}: {lines[0].strip()}")
    return done.stdout


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock; it ends with the process that holds it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vlmflow_engine.kernels.cpu.build", description="Build the CPU's kernels."
    )
    parser.add_argument(
        "--into", type=Path, default=_FOLDER, help="folder of the library; default: the package's"
    )
    folder: Path = parser.parse_args(arguments).into
    sources = Sources()
    path = folder / sources.library_name()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        compile_library(find_compiler(), sources, path)
    except (BuildError, OSError) as error:
        print(f"error: the CPU's kernels were not built: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
