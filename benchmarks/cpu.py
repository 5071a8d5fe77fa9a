"""vlmflow beside its peers on this CPU: the same checkpoint, prompts, images and lengths.

    make bench        python -m benchmarks.cpu [--quick] [--only W1,W3] [--engines vlmflow,openvino]

Each engine runs in a process of its own, in turns, at the best setting that a probe finds for the
workload; medians are reported. Every run is kept in build/, by the state of the sources: the same
command goes on where it was killed, and writes its page from all that is there.

    W1 to W4    engines beside one another (benchmarks/workload.py)
    W5          the whole job: S3, MLflow, the demo's model
    growth      how cost grows with the manifest
    scheduler   what planning a step costs
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.cpu_engines import Engine, Setting, best_setting, describe, exported, known_engines
from benchmarks.cpu_page import Page
from benchmarks.kept_runs import KeptRuns, Measurement, commit
from benchmarks.processes import run_worker, worker_environment
from benchmarks.request import WorkOrder
from benchmarks.workload import QUICK_WORKLOADS, WORKLOADS, Workload, make_checkpoint, make_requests

CACHE = Path("build/benchmarks")
RESULT = Path("benchmarks/results/cpu.md")
WHOLE_SYSTEM = ("W5", "growth", "scheduler")
_NUM_PROBED = 32  # records of a workload that a setting is tried on


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all parts of one benchmark share."""

    runs: KeptRuns
    checkpoint: Path
    engines: dict[str, Engine]
    num_threads: int
    is_quick: bool

    def compare(self, workload: Workload, repeats: int) -> None:
        """Run a workload through all engines, in turns."""
        settings = {name: self._best(engine, workload) for name, engine in self.engines.items()}
        for repeat in range(repeats):
            for name, engine in self.engines.items():
                done = self._run(f"run-{repeat}", engine, workload, settings[name])
                print(f"{workload.name} {repeat + 1}: {name} {done['seconds']:.1f} s", flush=True)

    def _best(self, engine: Engine, workload: Workload) -> Setting:
        """The setting that a part of the workload is fastest with."""

        def seconds(setting: Setting) -> float:
            name = f"probe-{describe(setting)}"
            done = self._run(name, engine, workload, setting, num_records=_NUM_PROBED)
            print(
                f"{workload.name}: {engine.name}, {describe(setting)}: {done['seconds']:.1f} s",
                flush=True,
            )
            return float(done["seconds"])

        settings = engine.settings[:1] if self.is_quick else engine.settings
        return best_setting(settings, seconds)[0]

    def _run(
        self,
        name: str,
        engine: Engine,
        workload: Workload,
        setting: Setting,
        num_records: int | None = None,
    ) -> Measurement:
        def make() -> Measurement:
            model = exported(engine, self.checkpoint, CACHE)
            requests = make_requests(CACHE / "images", workload)
            order = WorkOrder(
                worker=engine.worker,
                model=str(model),
                setting=setting,
                num_threads=self.num_threads,
                requests=tuple(requests[:num_records]),
            )
            return run_worker(engine.python, order, CACHE) | {"setting": setting}

        return self.runs.get_or_make(f"{workload.name}-{engine.name}-{name}", make)

    def measure_rates(self) -> None:
        """What the floors are made of, for each dtype that is measured."""
        for dtype in sorted({engine.weights for engine in self.engines.values()}):
            self.runs.get_or_make(f"rates-{dtype}", partial(self._rates, dtype))

    def _rates(self, dtype: str) -> Measurement:
        command = [sys.executable, "-m", "benchmarks.rates", dtype, str(self.num_threads)]
        command.append(str(self.checkpoint))
        for engine in self.engines.values():
            if engine.worker == "vlmflow" and engine.weights == dtype:
                command.append(json.dumps(engine.settings[0]))
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=worker_environment()
        )
        found: Measurement = json.loads(done.stdout.splitlines()[-1])
        return found

    def measure_system(self, part: str) -> None:
        """W5, growth or scheduler."""
        from benchmarks import job_shapes, scheduler

        measures: dict[str, Callable[[], Measurement]] = {
            "W5": partial(job_shapes.measure_job, 40 if self.is_quick else 2000, CACHE),
            "growth": partial(
                job_shapes.measure_growth, (8, 16) if self.is_quick else (64, 512, 4096), CACHE
            ),
            "scheduler": scheduler.measure,
        }
        found = self.runs.get_or_make(part, measures[part])
        print(f"{part}: {found}", flush=True)


def main() -> None:
    started = time.monotonic()
    options = _options()
    engines = known_engines()
    is_quick = options.quick
    workloads = QUICK_WORKLOADS if is_quick else WORKLOADS
    state = commit()
    runs = KeptRuns(CACHE / "runs" / (f"{state}-quick" if is_quick else state))
    if options.fresh:
        runs.forget()
    bench = Bench(
        runs=runs,
        checkpoint=make_checkpoint(CACHE / "llava-0.27b"),
        engines={name: engines[name] for name in options.engines or engines},
        num_threads=options.threads,
        is_quick=is_quick,
    )
    wanted = options.only or [*(workload.name for workload in workloads), *WHOLE_SYSTEM]
    bench.measure_rates()
    for workload in workloads:
        if workload.name in wanted:
            bench.compare(workload, 1 if is_quick else options.repeats)
    for part in WHOLE_SYSTEM:
        if part in wanted:
            bench.measure_system(part)
    page = Page(
        runs=runs,
        workloads={w: make_requests(CACHE / "images", w) for w in workloads},
        engines=engines,
        checkpoint_bytes=(bench.checkpoint / "model.safetensors").stat().st_size,
        num_threads=options.threads,
        commit=state,
    )
    text = page.render()
    print(text)
    if options.output or not is_quick:
        output = options.output or RESULT
        output.write_text(text, encoding="utf-8")
        page.draw(output.with_suffix(".svg"))
    print(f"this took {time.monotonic() - started:.0f} s")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [workload.name for workload in WORKLOADS] + list(WHOLE_SYSTEM)
    parser.add_argument("--only", type=partial(_several, names), metavar="PART,...")
    parser.add_argument("--engines", type=partial(_several, list(known_engines())), metavar="E,...")
    parser.add_argument("--repeats", type=int, default=3, help="of each engine (3)")
    parser.add_argument("--quick", action="store_true", help="few records, once: does all run?")
    parser.add_argument("--fresh", action="store_true", help="forget the runs that were kept")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, help=f"where the page goes ({RESULT})")
    return parser.parse_args()


def _several(allowed: Sequence[str], text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in allowed:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(allowed)}")
    return names


if __name__ == "__main__":
    main()
