"""Every kernel compiles ahead of time, in every configuration we ship, and keeps within a block."""

import ast
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tools.compile_kernels import ARCHITECTURES, PACKAGE, TABLE, cases_of, kernel_modules

ROOT = Path(__file__).parents[3]
EXAMPLES = "tests.engine.kernels.compiled_examples"


def compile_kernels(*arguments, **environment):
    """Run the tool as `make` does: what this process made is for the interpreter."""
    command = [sys.executable, "-m", "tools.compile_kernels", *arguments]
    process = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment
    )
    return process.returncode, process.stdout, process.stderr.splitlines()


def kernels_in(module):
    """Names of the Triton kernels of a module: functions that end in `_kernel`."""
    tree = ast.parse(Path(find_spec(module).origin).read_text())
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and node.name.endswith("_kernel")
        and any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    }


def test_every_module_with_a_kernel_is_found():
    folder = Path(find_spec(PACKAGE).origin).parent
    modules = {f"{PACKAGE}.{file.stem}" for file in folder.glob("*.py")}
    assert {module for module in modules if kernels_in(module)} == set(kernel_modules())


def test_every_kernel_has_a_case_for_every_architecture():
    for module in kernel_modules():
        for architecture in ARCHITECTURES:
            compiled = {
                case.kernel.fn.__name__
                for case in cases_of(module)
                if architecture in case.architectures
            }
            assert compiled == kernels_in(module), (module, architecture)


def test_names_of_cases_are_different():
    for module in kernel_modules():
        names = [case.name for case in cases_of(module)]
        assert len(names) == len(set(names)), module


def test_all_kernels_compile_for_hopper():
    code, table, faults = compile_kernels()
    assert faults == []
    assert code == 0
    cases = [case for module in kernel_modules() for case in cases_of(module)]
    assert len(table.splitlines()) >= 2 + sum(90 in case.architectures for case in cases)


@pytest.mark.slow
def test_all_kernels_compile_for_all_architectures():
    code, table, faults = compile_kernels("--all")
    assert faults == []
    assert code == 0
    # Which rows there are; their numbers are those of one version of Triton.
    rows = {tuple(line.split("|")[1:4]) for line in table.splitlines() if line.startswith("| ")}
    kept = (ROOT / TABLE).read_text().splitlines()
    assert rows == {tuple(line.split("|")[1:4]) for line in kept if line.startswith("| ")}


@pytest.fixture(scope="module")
def examples():
    return compile_kernels(EXAMPLES, TRITON_INTERPRET="1")  # which must not be heeded


def test_what_does_not_fit_fails_with_a_sentence_each(examples):
    code, table, faults = examples
    assert code == 1
    spilling, too_large, broken = faults  # and neither the fine one nor the excused one
    assert "'spilling' for sm_90 spills" in spilling
    assert "allowed_spills" in spilling
    assert "'too large' for sm_90 takes 262,144 bytes of shared memory" in too_large
    assert "232,448" in too_large
    assert "'broken' for sm_90 does not compile" in broken
    assert "num_elements, out_ptr missing" in broken
    assert "(1) It is here to spill." in table


def test_a_table_is_of_numbers_that_ptxas_has_said(examples):
    _, table, _ = examples
    cells = [cell.strip() for cell in table.splitlines()[2].split("|")]
    assert cells[1:6] == ["compiled_examples", "fine", "90", "4", "2"]
    assert 10 < int(cells[6]) < 64  # registers of a thread that copies 8 elements
