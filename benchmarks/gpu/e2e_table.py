"""The short table of the end-to-end runs: what was measured beside transformers and the floor."""

import statistics
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from benchmarks.gpu.floor import ModelRates, decode_step_floor, workload_floor
from benchmarks.gpu.shapes import SHAPES
from benchmarks.gpu.workload import Workload, draw_lengths

Results = dict[str, dict[str, Any]]
NOT_MEASURED = "not measured"


def render_table(
    results: Results, models: Sequence[str], workloads: Sequence[Workload], num_requests: int
) -> str:
    lines = [
        "| model | workload | vlmflow s | transformers s (batch) | times as fast | floor s "
        "| share of the floor |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in models:
        for workload in workloads:
            lines.append(_workload_row(results, model, workload, num_requests))
    lines += [
        "",
        "| model | decode step ms | its floor | times the floor | GPU busy | first token s "
        "| transformers' |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_steady_row(results, model) for model in models]
    return "\n".join(lines)


def _workload_row(results: Results, model: str, workload: Workload, num_requests: int) -> str:
    ours = _workload(results, f"{model} vlmflow", workload)
    theirs = _workload(results, f"{model} transformers, {workload.name}", workload)
    cells = [NOT_MEASURED] * 5
    if ours is not None:
        seconds = statistics.median(run["seconds"] for run in ours["runs"])
        cells[0] = f"{seconds:.2f}"
        rates = _rates(results, model)
        if rates is not None:
            floor = workload_floor(
                SHAPES[model],
                rates,
                draw_lengths(workload, num_requests),
                side=workload.side,
                prompt_tokens=ours["runs"][0]["prompt_tokens"],
            )
            cells[3:] = [f"{floor.seconds:.2f}", f"{floor.seconds / seconds:.0%}"]
        if theirs is not None:
            cells[2] = f"{theirs['seconds'] / seconds:.2f}"
    if theirs is not None:
        cells[1] = f"{theirs['seconds']:.2f} ({theirs['batch_size']})"
    return f"| {model} | {workload.name} | {' | '.join(cells)} |"


def _steady_row(results: Results, model: str) -> str:
    ours = results.get(f"{model} vlmflow")
    prefix = f"{model} transformers, "
    theirs = next((part for name, part in results.items() if name.startswith(prefix)), None)
    cells = [NOT_MEASURED] * 6
    if ours is not None and (steady := ours.get("steady")):
        cells[0] = f"{1e3 * steady['step_seconds']:.2f}"
        rates = _rates(results, model)
        if rates is not None:
            floor = decode_step_floor(
                SHAPES[model], rates, steady["batch_size"], steady["mean_context"]
            )
            cells[1] = f"{1e3 * floor:.2f}"
            cells[2] = f"{steady['step_seconds'] / floor:.2f}"
        if steady["busy_share"] is not None:
            cells[3] = f"{steady['busy_share']:.1%}"
    if ours is not None:
        cells[4] = f"{ours['start_up']['first_token_seconds']:.1f}"
    if theirs is not None:
        cells[5] = f"{theirs['start_up']['first_token_seconds']:.1f}"
    return f"| {model} | {' | '.join(cells)} |"


def _workload(results: Results, part: str, workload: Workload) -> dict[str, Any] | None:
    result = results.get(part)
    found: dict[str, Any] | None = result and result["workloads"].get(workload.name)
    return found


def _rates(results: Results, model: str) -> ModelRates | None:
    result = results.get(f"{model} rates")
    return None if result is None else model_rates(result)


def model_rates(result: dict[str, float]) -> ModelRates:
    """The rates that a part has kept."""
    names = (field.name for field in fields(ModelRates))
    return ModelRates(**{name: result[name] for name in names})
