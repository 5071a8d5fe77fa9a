"""The commands for a GPU, rehearsed at toy sizes, so that the first run on one dies of no typo."""

import sys
from importlib import import_module

import pytest
import torch

COMMANDS = (
    "benchmarks.gpu.e2e",
    "benchmarks.gpu.kernels",
    "benchmarks.gpu.profile",
    "tests.gpu.on_device",
)


def run(monkeypatch, command, *arguments):
    module = import_module(command)
    monkeypatch.setattr(sys, "argv", [command, *map(str, arguments)])
    return module.main()


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_gpu_one_sentence_says_so(monkeypatch, capsys, tmp_path, command):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which the command takes away, and this gives back
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, command, "--out", tmp_path)
    assert ended.value.code == 2
    assert "sees no CUDA device; run this on a machine with a GPU" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_profile_of_a_toy_has_both_phases(monkeypatch, capsys, tmp_path):
    code = run(
        monkeypatch, "benchmarks.gpu.profile", "--device", "cpu", "--out", tmp_path,
        "--only", "toy_llava",
    )  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0, out
    for phase in ("decode", "prefill"):
        for kind in ("products", "nothing runs", "in all", "the floor of it"):
            assert f"| toy_llava_1_6, {phase} | {kind} |" in out
