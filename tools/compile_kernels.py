"""Compile every Triton kernel, in every configuration we ship, for GPUs that need not be there.

    python -m tools.compile_kernels [--all] [--write] [MODULE ...]

What ptxas says of registers, spills and shared memory is printed as a table. A spill, or more
shared memory than a block can have, is a fault, a sentence on stderr each, and exit code 1; a
spill is none where its case gives a reason. `--write` keeps the table of all architectures. It
says nothing about speed or results: those are for a GPU (docs/gpu.md).
"""

import argparse
import importlib
import importlib.util
import io
import multiprocessing
import os
import pkgutil
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmflow_engine.kernels.compile_case import CompileCase

PACKAGE = "vlmflow_engine.kernels"
TABLE = Path("benchmarks/results/kernels_aot.md")
ARCHITECTURES = (80, 90, 100)
DEFAULT_ARCHITECTURE = 90
# What one block can have, of CUDA's programming guide.
MAX_SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
_NUM_PROCESSES = 2
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True, slots=True)
class Job:
    """A case of a module, by its place: kernels themselves do not travel between processes."""

    module: str
    index: int
    architecture: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What one compiled kernel takes, and what is wrong with that."""

    module: str
    name: str
    architecture: int
    num_warps: int
    num_stages: int
    registers: int = 0  # of a thread
    spill_bytes: int = 0  # of a thread, stored and loaded
    stack_bytes: int = 0  # of a thread
    shared_bytes: int = 0  # of a block
    seconds: float = 0.0
    allowed_spills: str = ""
    error: str = ""  # why it does not compile

    @property
    def faults(self) -> list[str]:
        """What fails a build, a sentence each."""
        who = f"{self.module}: {self.name!r} for sm_{self.architecture}"
        if self.error:
            return [f"{who} does not compile: {self.error}"]
        found = []
        if self.spill_bytes and not self.allowed_spills:
            found.append(
                f"{who} spills {self.spill_bytes} bytes of registers a thread; choose smaller "
                "tiles or more warps, or give the reason in the case's allowed_spills"
            )
        limit = MAX_SHARED_BYTES[self.architecture]
        if self.shared_bytes > limit:
            found.append(
                f"{who} takes {self.shared_bytes:,} bytes of shared memory, and a block can have "
                f"{limit:,}; choose smaller tiles or fewer stages"
            )
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="default: all with kernels")
    parser.add_argument("--all", action="store_true", help="sm_80 and sm_100 too, not only sm_90")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE}; takes --all with it")
    options = parser.parse_args()
    # Read when a kernel's module is imported: it would make kernels that only the interpreter runs.
    os.environ.pop("TRITON_INTERPRET", None)
    wanted = ARCHITECTURES if options.all or options.write else (DEFAULT_ARCHITECTURE,)
    usages = compile_all(options.modules or kernel_modules(), wanted)
    table = render(usages)
    print(table)
    if options.write:
        TABLE.write_text(_page(table), encoding="utf-8")
    faults = [fault for usage in usages for fault in usage.faults]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def kernel_modules() -> list[str]:
    """The modules of our kernels that hold one for Triton, found without importing any."""
    package = importlib.import_module(PACKAGE)
    found = []
    for info in pkgutil.iter_modules(package.__path__, f"{PACKAGE}."):
        spec = importlib.util.find_spec(info.name)
        assert spec is not None and spec.origin is not None
        source = Path(spec.origin).read_text(encoding="utf-8")
        if re.search(r"^@triton\.jit.*\n(?:#.*\n|@.*\n)*def _\w+_kernel\(", source, re.MULTILINE):
            found.append(info.name)
    return found


def compile_all(modules: Sequence[str], architectures: Sequence[int]) -> list[Usage]:
    """Compile all cases of the modules, in processes of their own."""
    jobs = [
        Job(module, index, architecture)
        for module in modules
        for index, case in enumerate(cases_of(module))
        for architecture in architectures
        if architecture in case.architectures
    ]
    # Not forked: torch has threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_NUM_PROCESSES, mp_context=context) as pool:
        return list(pool.map(run, jobs))


def cases_of(module: str) -> "list[CompileCase]":
    cases: list[CompileCase] = importlib.import_module(module).compile_cases()
    return cases


def run(job: Job) -> Usage:
    """Compile one case and read what ptxas says of it."""
    case = cases_of(job.module)[job.index]
    start, log = time.perf_counter(), io.StringIO()
    who: dict[str, Any] = {
        "module": job.module.rpartition(".")[2],
        "name": case.name,
        "architecture": job.architecture,
        "num_warps": case.num_warps,
        "num_stages": case.num_stages,
        "allowed_spills": case.allowed_spills,
    }
    try:
        with redirect_stdout(log):
            compiled = _compile(case, job.architecture)
    except Exception as error:  # of many classes, and over many lines
        return Usage(**who, error=f"{type(error).__name__}: {_reason(str(error))}")
    frames = _FRAME.findall(log.getvalue())
    registers = _REGISTERS.findall(log.getvalue())
    if not frames or not registers:
        return Usage(**who, error="ptxas said nothing of its registers")
    return Usage(
        **who,
        registers=max(map(int, registers)),
        spill_bytes=max(int(stores) + int(loads) for _, stores, loads in frames),
        stack_bytes=max(int(stack) for stack, _, _ in frames),
        shared_bytes=compiled.metadata.shared,
        seconds=time.perf_counter() - start,
    )


def _reason(message: str) -> str:
    """The line of a compiler's message that says what is wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"\b(error|fatal)\b", line)]
    return (told or lines or ["no reason given"])[0]


def _compile(case: "CompileCase", architecture: int) -> Any:
    """Compile without a device; Triton prints what its own call of ptxas says."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    knobs.nvidia.dump_ptxas_log = True
    knobs.compilation.always_compile = True  # else there is no log
    names = case.kernel.arg_names
    missing = set(names) - set(case.signature) - set(case.constants)
    unknown = (set(case.signature) | set(case.constants) | set(case.aligned)) - set(names)
    if missing or unknown:
        raise ValueError(
            f"the case's arguments are not the kernel's: {', '.join(sorted(missing)) or 'none'} "
            f"missing, {', '.join(sorted(unknown)) or 'none'} unknown"
        )
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    aligned = [
        index
        for index, name in enumerate(names)
        if name in case.aligned or signature[name].startswith("*")
    ]
    source = ASTSource(
        fn=case.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in case.constants.items()},
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    return triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": case.num_warps, "num_stages": case.num_stages},
    )


def render(usages: Sequence[Usage]) -> str:
    lines = [
        "| module | kernel and configuration | sm | warps | stages | registers | spilled bytes "
        "| stack bytes | shared bytes | s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    reasons: list[str] = []
    for usage in usages:
        spilled = str(usage.spill_bytes)
        if usage.spill_bytes and usage.allowed_spills:
            if usage.allowed_spills not in reasons:
                reasons.append(usage.allowed_spills)
            spilled += f" ({reasons.index(usage.allowed_spills) + 1})"
        lines.append(
            f"| {usage.module} | {usage.name} | {usage.architecture} | {usage.num_warps} "
            f"| {usage.num_stages} | {usage.registers} | {spilled} | {usage.stack_bytes} "
            f"| {usage.shared_bytes:,} | {usage.seconds:.1f} |"
        )
    notes = [f"({number}) {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", *notes])


def _page(table: str) -> str:
    import triton

    limits = ", ".join(f"{size >> 10} KiB on sm_{sm}" for sm, size in MAX_SHARED_BYTES.items())
    return "\n".join(
        [
            "# Triton kernels, compiled ahead of time",
            "",
            f"Triton {triton.__version__}, {date.today()}, `make kernels-table`: all that the "
            "launchers choose among. Registers, spilled bytes (stored and loaded) and stack are a "
            f"thread's, shared memory is a block's: at most {limits}. A spill without a reason, "
            "or more shared memory, fails `make test` (tests/engine/kernels/test_compile.py). This "
            "is what the compiler says; how fast they are only a GPU tells (gpu.md).",
            "",
            table.rstrip(),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
