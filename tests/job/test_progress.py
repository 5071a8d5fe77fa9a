"""A person is told how far a job is: on a terminal by a bar, in a log by a line now and then."""

import io
import os
import sys
from contextlib import suppress

import pytest

from tests.job.conftest import Clock
from vlmflow.job.progress import (
    LINE_SECONDS,
    LineDisplay,
    Progress,
    TerminalDisplay,
    format_seconds,
    make_display,
)


def at(num_done: int, rate: float = 2.0, num_failed: int = 0) -> Progress:
    return Progress(100, num_done, num_failed, rate)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0s"), (0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (75, "1m15s")),
        *((3599.4, "59m59s"), (3599.6, "1h00m"), (7384, "2h03m"), (360_000, "100h00m")),
    ],
)
def test_time_is_told_in_two_units_at_most(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_time_left_is_known_once_there_is_a_rate() -> None:
    assert at(40).eta_seconds == 30
    assert at(100).eta_seconds == 0
    assert at(40, rate=0.0).eta_seconds is None


def test_line_says_where_the_job_stands(capsys: pytest.CaptureFixture[str]) -> None:
    display = LineDisplay()
    display.show(at(40, num_failed=3))
    display.say("a word [in] between")
    display.close()
    assert capsys.readouterr().err.splitlines() == [
        "40/100 records, 2.0/s, ETA 30s, 3 failed",
        "a word [in] between",
    ]


def test_line_comes_now_and_then_and_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    display = LineDisplay()
    for num_done, seconds in ((0, 0.0), (1, 1.0), (2, LINE_SECONDS), (3, 1.0), (100, 1.0)):
        clock.now += seconds
        display.show(at(num_done, rate=0.0))
    assert capsys.readouterr().err.splitlines() == [
        "0/100 records, 0.0/s, ETA -, 0 failed",
        "2/100 records, 0.0/s, ETA -, 0 failed",
        "100/100 records, 0.0/s, ETA -, 0 failed",
    ]


def test_end_is_told_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    display = LineDisplay()
    display.show(at(100))
    display.show(at(100))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_first_line_comes_at_once_on_a_machine_that_has_just_started(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    clock.now = 3.0
    LineDisplay().show(at(1))
    assert capsys.readouterr().err.startswith("1/100 records")


def test_log_gets_lines_and_a_terminal_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", io.StringIO())
        assert isinstance(make_display(), LineDisplay)
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "120")
        display = make_display()
        assert isinstance(display, TerminalDisplay)
        display.show(at(40, num_failed=3))
        display.say("a word [in] between")
        display.close()
    shown = ""
    with os.fdopen(ours, "rb", buffering=0) as screen, suppress(OSError):  # EIO at the end
        while piece := screen.read(1000):
            shown += piece.decode(errors="replace")
    for words in ("40/100 records", "2.0/s", "ETA 30s", "3 failed", "a word [in] between"):
        assert words in shown
