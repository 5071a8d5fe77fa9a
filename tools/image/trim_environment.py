"""Take from an environment what is there to build or to test others, and say what that saves.

    python trim_environment.py /opt/vlmflow

What is imported by nobody at run time goes; each rule says why. The image's tests run a whole job
on what is left.
"""

import shutil
import sys
from pathlib import Path

# Below lib/python3.*/site-packages.
RULES = {
    "torch/include": "C++ headers, for extensions that are compiled",
    "torch/share": "CMake files, for the same",
    "torch/lib/*.a": "static libraries, for the same",
    "torch/bin/protoc*": "a compiler of protobuf files",
    "torch/bin/test_*": "tests in C++",
    "torch/test": "tests in C++",
    "pyarrow/include": "C++ headers",
    "pyarrow/src": "C++ sources",
    "pyarrow/*.pyx": "sources of what is there compiled",
    "pyarrow/lib*.a": "static libraries",
    "numpy/_core/include": "C headers",
    "numpy/_core/lib/*.a": "static libraries",
    "numpy/random/lib/*.a": "static libraries",
    "numpy/f2py/src": "C sources",
    "*/tests": "a package's own tests",
    "*/*/tests": "a package's own tests",
    "*/*/*/tests": "a package's own tests",
}
# Folders called tests that are no tests, or that the package itself imports.
KEPT = ("numpy/testing/tests", "torch/testing")


def main(environment: Path) -> None:
    (packages,) = environment.glob("lib/python3.*/site-packages")
    for pattern, reason in RULES.items():
        saved = sum(
            remove(path)
            for path in sorted(packages.glob(pattern))
            if not str(path.relative_to(packages)).startswith(KEPT)
        )
        print(f"{saved / 1e6:8.1f} MB  {pattern}: {reason}")


def remove(path: Path) -> int:
    """Remove a file or a folder; return its bytes."""
    if not path.is_dir():
        size = path.lstat().st_size
        path.unlink()
        return size
    size = sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
    shutil.rmtree(path)
    return size


if __name__ == "__main__":
    main(Path(sys.argv[1]))
