"""A bar on a terminal, lines in the log elsewhere, and one line at the end."""

import io
import logging

import pytest
import torch
from safetensors.torch import save_file

from tests.engine.models.test_weights import open_checkpoint
from vlmflow_engine.models import load_progress
from vlmflow_engine.models.load_progress import LoadProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called in the test itself: pytest sets sys.stderr anew behind the fixtures."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # no thread of its own
    return terminal


def test_loading_leaves_one_line_with_seconds_and_bytes(tmp_path, caplog):
    save_file({"a": torch.zeros(1000), "b": torch.zeros(2, 500)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path, torch.bfloat16)
    checkpoint.split("b", {"c": 1, "d": 1})
    with caplog.at_level(logging.INFO):
        checkpoint.take("a", 1000), checkpoint.take("c", 1, 500), checkpoint.take("d", 1, 500)
        checkpoint.check_used()
    [line] = caplog.messages
    assert line.startswith(f"{tmp_path}: 3 tensors, 8,000 bytes read in 0.")  # as they are stored


def test_without_a_terminal_slow_loading_is_told_in_lines(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(load_progress, "_LINE_SECONDS", 0.0)
    progress = LoadProgress(tmp_path, 2_000_000)
    with caplog.at_level(logging.INFO):
        progress.add(500_000)
    assert caplog.messages == [f"{tmp_path}: 25 % of 2,000,000 bytes read"]


def test_on_a_terminal_there_is_a_bar(tmp_path, monkeypatch):
    terminal = make_terminal(monkeypatch)
    progress = LoadProgress(tmp_path, 2_000_000)
    progress.add(2_000_000)
    progress.finish()
    assert "loading" in terminal.getvalue() and "2.00M" in terminal.getvalue()


def test_whoever_draws_on_the_terminal_himself_has_no_bar(tmp_path, monkeypatch):
    terminal = make_terminal(monkeypatch)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    progress = LoadProgress(tmp_path, 2_000_000)
    progress.add(2_000_000)
    progress.finish()
    assert terminal.getvalue() == ""
