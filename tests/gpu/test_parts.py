"""A command's parts are kept as they are done, and a resume does only what is missing."""

import json

import pytest

from benchmarks.gpu.device import Environment
from benchmarks.gpu.parts import Parts


def environment(device="NVIDIA H200", commit="abc1234"):
    return Environment(
        device=device,
        driver="580",
        python="3.12",
        torch="2.11",
        cuda="13.0",
        triton="3.6",
        transformers="5.17",
        commit=commit,
    )


def parts_of(path, *, is_resumed=False, minutes=1.0, only=None, **where):
    return Parts(path, environment(**where), is_resumed=is_resumed, minutes=minutes, only=only)


def broken():
    raise ValueError("no such backend")


def test_a_finished_part_is_kept_and_not_computed_again(tmp_path):
    path = tmp_path / "out" / "gpu.json"
    assert parts_of(path).run("decode", lambda: {"us": 12}) == {"us": 12}
    resumed = parts_of(path, is_resumed=True)
    assert resumed.run("decode", broken) == {"us": 12}
    assert resumed.close("table") == 0


def test_without_resume_everything_is_computed_anew(tmp_path):
    path = tmp_path / "gpu.json"
    parts_of(path).run("decode", lambda: {"us": 12})
    assert parts_of(path).run("decode", lambda: {"us": 13}) == {"us": 13}
    assert json.loads(path.read_text())["parts"]["decode"]["result"] == {"us": 13}


def test_a_part_that_fails_stops_no_other_and_is_tried_again(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    parts = parts_of(path)
    assert parts.run("decode", broken) is None
    assert parts.run("prefill", lambda: {"us": 5}) == {"us": 5}
    assert parts.close("the table") == 1
    out = capsys.readouterr().out
    assert "failed: decode: ValueError: no such backend" in out
    assert out.index("the table") < out.index("NVIDIA H200, driver 580, CUDA 13.0, torch 2.11")
    assert parts_of(path, is_resumed=True).run("decode", lambda: {"us": 12}) == {"us": 12}


def test_after_the_time_is_over_parts_are_left_for_the_next_call(tmp_path, capsys):
    parts = parts_of(tmp_path / "gpu.json", minutes=0.0)
    assert parts.run("decode", lambda: {"us": 12}) is None
    assert parts.left == ["decode"]
    assert parts.close("") == 1
    assert "no time for: decode; call again with --resume" in capsys.readouterr().out


def test_a_part_that_would_not_fit_is_left(tmp_path):
    parts = parts_of(tmp_path / "gpu.json", minutes=1.0)
    assert parts.run("short", lambda: {}, seconds=30) == {}
    assert parts.run("long", broken, seconds=90) is None
    assert parts.left == ["long"]


def test_only_the_wanted_parts_are_run(tmp_path):
    parts = parts_of(tmp_path / "gpu.json", only=["qwen"])
    assert parts.run("llava rates", broken) is None
    assert parts.run("qwen rates", lambda: {"a": 1}) == {"a": 1}
    assert parts.close("") == 0


def test_numbers_of_two_devices_are_not_mixed(tmp_path):
    path = tmp_path / "gpu.json"
    parts_of(path).run("decode", lambda: {"us": 12})
    with pytest.raises(SystemExit, match="'NVIDIA H200', and this is 'NVIDIA H100'"):
        parts_of(path, is_resumed=True, device="NVIDIA H100")


def test_each_part_says_which_commit_it_is_of(tmp_path):
    path = tmp_path / "gpu.json"
    parts_of(path).run("decode", lambda: {"us": 12})
    parts_of(path, is_resumed=True, commit="def5678").run("prefill", lambda: {"us": 5})
    kept = json.loads(path.read_text())["parts"]
    assert {name: part["commit"] for name, part in kept.items()} == {
        "decode": "abc1234",
        "prefill": "def5678",
    }
