"""The tests of attention once more, by a library that watches every access to memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlmflow_engine.kernels.cpu.build import BuildError, Sources, compile_library

FLAGS = ("-fsanitize=address", "-O1", "-fno-omit-frame-pointer")
# Rows are stored behind the end of the cache.
OVERFLOW = """
import torch
from dataclasses import replace
from tests.engine.kernels.cpu.steps import Span, make_step
step = make_step([Span(0, 40)], turns=False)
slots = step.metadata.slot_mapping + len(step.cache.key.rows) * 16
replace(step, metadata=replace(step.metadata, slot_mapping=slots)).run()
"""


@pytest.fixture(scope="module")
def environment(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a process that finds such a library, under the name of the usual one."""
    folder = tmp_path_factory.mktemp("sanitized")
    try:
        compile_library(compiler, Sources(flags=FLAGS), folder / Sources().library_name())
    except BuildError as error:
        pytest.skip(f"this g++ has no AddressSanitizer: {error}")
    runtime = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    return {
        **os.environ,
        "LD_PRELOAD": str(Path(runtime.stdout.strip()).resolve()),
        "ASAN_OPTIONS": "detect_leaks=0",
        "VLMFLOW_CPU_KERNELS_DIR": str(folder),
        "OMP_NUM_THREADS": "2",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_access_is_out_of_bounds(environment, library):
    tests = Path(__file__).with_name("test_attention.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", str(tests), "-k", library.best_level],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout.splitlines()[-1]
    assert "no libvlmflow_cpu" not in done.stdout + done.stderr


@pytest.mark.slow
def test_an_access_that_is_out_of_bounds_would_be_found(environment):
    done = subprocess.run(
        [sys.executable, "-c", OVERFLOW], env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert "libvlmflow_cpu" in done.stderr
