"""The end-to-end run, both engines in this process, on toys of both kinds."""

import json
import time
from pathlib import Path

import pytest

from benchmarks.gpu import e2e
from benchmarks.gpu.checkpoint import make_checkpoint, temporary_folder
from benchmarks.gpu.e2e_table import render_table
from benchmarks.gpu.peer import Peer
from benchmarks.gpu.shapes import SHAPES, TOY_LLAVA, TOY_QWEN
from benchmarks.gpu.worker import run_transformers, run_vlmflow
from benchmarks.gpu.workload import TOY_LARGE, TOY_SMALL, draw_lengths, load_requests, make_requests

SCALE = e2e.scale_of("cpu")


@pytest.fixture(scope="module", params=[TOY_QWEN, TOY_LLAVA])
def measured(request, tmp_path_factory):
    """Shape, plan, and what both engines measured."""
    folder, shape = tmp_path_factory.mktemp(request.param), SHAPES[request.param]
    make_checkpoint(folder / "model", shape, "cpu")
    plan = e2e._plan(folder, shape, SCALE, "cpu") | {"engine": {}, "started": time.time()}
    plan = json.loads(json.dumps(plan))  # as the engines' processes read it
    return shape, plan, run_vlmflow(plan), run_transformers(plan)


def test_both_engines_do_the_same_work(measured):
    shape, plan, ours, theirs = measured
    for workload in (TOY_LARGE, TOY_SMALL):
        runs = ours["workloads"][workload.name]["runs"]
        assert len(runs) == SCALE.repeats
        lengths = draw_lengths(workload, SCALE.num_requests)
        assert {run["output_tokens"] for run in runs} == {sum(lengths)}
        assert theirs["workloads"][workload.name]["output_tokens"] == sum(lengths)


def test_a_second_run_finds_nothing_of_the_first_in_a_cache(measured):
    _, _, ours, _ = measured
    for workload in ours["workloads"].values():
        for run in workload["runs"]:
            assert run["stats"]["num_encoded_images"] == SCALE.num_requests
            assert run["stats"]["encoder_hits"] == 0


def test_steady_decode_is_watched_while_all_decode(measured):
    _, plan, ours, _ = measured
    steady = ours["steady"]
    assert steady["batch_size"] == SCALE.steady["batch_size"]
    assert steady["num_steps"] >= SCALE.steady["num_steps"]
    assert 0 < steady["step_seconds"] < 10
    assert steady["mean_context"] > 20
    assert 0 < steady["busy_share"] <= 1


def test_start_up_counts_from_the_start_of_the_process(measured):
    _, plan, ours, theirs = measured
    for result in (ours, theirs):
        start_up = result["start_up"]
        assert start_up["first_token_seconds"] > start_up["load_seconds"] > 0


def test_every_part_that_is_run_is_read_by_the_table(measured):
    shape, _, ours, theirs = measured
    parts = e2e.engine_parts(shape.name, SCALE)
    results = {name: ours if engine == "vlmflow" else theirs for name, (engine, _) in parts.items()}
    table = render_table(results, [shape.name], SCALE.workloads, SCALE.num_requests)
    # Without rates there is no floor: of two workloads, and of the step of decoding.
    assert table.count("not measured") == 2 + 2 + 2


def test_the_table_has_every_cell(measured):
    shape, _, ours, theirs = measured
    rates = e2e.measured_rates(shape, "cpu")
    results = {
        f"{shape.name} rates": rates,
        f"{shape.name} vlmflow": ours,
        **{f"{shape.name} transformers, {workload.name}": theirs for workload in SCALE.workloads},
    }
    table = render_table(results, [shape.name], SCALE.workloads, SCALE.num_requests)
    assert "not measured" not in table
    assert table.count(f"| {shape.name} |") == 3
    without = render_table({}, [shape.name], SCALE.workloads, SCALE.num_requests)
    assert without.count("not measured") == 5 + 5 + 6


class TimedPeer(Peer):
    """Takes the times that it is given, by batch size; None is out of memory."""

    def __init__(self, seconds):
        self.seconds, self.asked = seconds, []

    def _timed(self, requests, size):
        import torch

        self.asked.append((len(requests), size))
        if self.seconds[size] is None:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return self.seconds[size]


@pytest.mark.parametrize(
    ("seconds", "asked", "best"),
    [
        # The probe's best is in the middle: nothing smaller than the first worse one is tried.
        ({32: 3, 16: 2, 8: 4}, [(32, 32), (32, 16), (32, 8), (128, 16)], 16),
        # Its best is its largest: larger ones are tried on all, for as long as they help.
        (
            {32: 9, 16: 10, 64: 5, 128: 6},
            [(32, 32), (32, 16), (128, 32), (128, 64), (128, 128)],
            64,
        ),
        ({32: 9, 16: 10, 64: None}, [(32, 32), (32, 16), (128, 32), (128, 64)], 32),
        ({32: None, 16: 5, 8: 6}, [(32, 32), (32, 16), (32, 8), (128, 16)], 16),
    ],
)
def test_transformers_gets_its_best_batch_size(seconds, asked, best):
    from benchmarks.gpu.workload import GpuRequest

    requests = [GpuRequest("", "", 1)] * 128
    peer = TimedPeer(seconds)
    result = peer.measure(requests, requests[:32], (8, 16, 32, 64, 128))
    assert peer.asked == asked
    assert result["batch_size"] == best
    assert json.dumps(result, allow_nan=False)


def test_another_series_has_other_images_and_the_same_work(tmp_path):
    first = make_requests(tmp_path, TOY_LARGE, 4)
    again = make_requests(tmp_path, TOY_LARGE, 4)
    second = make_requests(tmp_path, TOY_LARGE, 4, series=1)
    assert again == first
    assert [r.num_new_tokens for r in second] == [r.num_new_tokens for r in first]
    assert [len(r.text.split()) for r in second] == [len(r.text.split()) for r in first]
    images = {Path(r.image).read_bytes() for r in (*first, *second)}
    assert len(images) == 8


def test_a_folder_is_gone_when_it_is_left_and_refused_without_room():
    with temporary_folder(1 << 20) as folder:
        assert folder.is_dir()
    assert not folder.exists()
    with pytest.raises(SystemExit, match="have no room"), temporary_folder(1 << 60):
        pass


def test_requests_travel_as_they_are(tmp_path):
    from benchmarks.gpu.workload import save_requests

    requests = make_requests(tmp_path, TOY_SMALL, 2)
    save_requests(tmp_path / "requests.json", requests)
    assert load_requests(tmp_path / "requests.json") == requests
