"""What the guard sees to: nothing it started outlives who wanted it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.airflow.jobs import wait_until
from vlmflow.airflow import guard

# Ends politely when told to, and says so.
POLITE = "trap 'echo told >> $OUT; exit 75' TERM; echo ready >> $OUT; while :; do sleep 0.05; done"
# Does not listen, and has a child in a session of its own, as the engine is of the job.
STUBBORN = (
    "trap '' TERM; setsid sleep 333 & echo $! >> $OUT; echo ready >> $OUT; "
    "while :; do sleep 0.05; done"
)


class Guarded:
    """A shell script under the guard."""

    def __init__(self, tmp_path: Path, script: str, *, grace: float = 5.0, lifeline: str = "-"):
        self.said = tmp_path / "said"
        self.exit_file = tmp_path / "exit"
        fds = [int(lifeline)] if lifeline != "-" else []
        command = [sys.executable, "-I", "-S", guard.__file__, str(grace), lifeline]
        self.process = subprocess.Popen(
            [*command, str(self.exit_file), "sh", "-c", script],
            env={**os.environ, "OUT": str(self.said)},
            pass_fds=fds,
            start_new_session=True,
        )

    def lines(self) -> list[str]:
        return self.said.read_text().split() if self.said.exists() else []

    def wait_until_ready(self) -> None:
        wait_until(lambda: "ready" in self.lines(), "the script has begun")


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_the_exit_code_is_the_commands(tmp_path, script, code):
    guarded = Guarded(tmp_path, script)
    assert guarded.process.wait(20) == code
    assert guarded.exit_file.read_text() == f"{code}\n"


def test_sigterm_is_passed_on_once_however_often_it_comes(tmp_path):
    slow = POLITE.replace("exit 75", "sleep 0.5; exit 75")
    guarded = Guarded(tmp_path, slow)
    guarded.wait_until_ready()
    for _ in range(3):
        guarded.process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert guarded.process.wait(20) == 75
    assert guarded.lines().count("told") == 1


def test_a_worker_that_is_gone_is_as_good_as_sigterm(tmp_path):
    read_end, write_end = os.pipe()
    guarded = Guarded(tmp_path, POLITE, lifeline=str(read_end))
    os.close(read_end)
    guarded.wait_until_ready()
    assert guarded.process.poll() is None
    os.close(write_end)  # which is what the kernel does for a worker killed by SIGKILL
    assert guarded.process.wait(20) == 75


def test_what_does_not_listen_is_killed_after_the_grace_with_all_it_started(tmp_path):
    guarded = Guarded(tmp_path, STUBBORN, grace=0.5)
    guarded.wait_until_ready()
    orphan = psutil.Process(int(guarded.lines()[0]))
    began = time.monotonic()
    guarded.process.send_signal(signal.SIGTERM)
    assert guarded.process.wait(20) == 137
    assert time.monotonic() - began >= 0.5
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE


def test_what_a_command_leaves_behind_is_ended(tmp_path, monkeypatch):
    guarded = Guarded(tmp_path, "setsid sleep 333 & echo $! >> $OUT; exit 3")
    assert guarded.process.wait(20) == 3
    pid = int(guarded.lines()[0])
    assert not psutil.pid_exists(pid)


def test_a_command_whose_guard_is_killed_is_told_to_stop(tmp_path):
    guarded = Guarded(tmp_path, POLITE)
    guarded.wait_until_ready()
    guarded.process.kill()
    guarded.process.wait(20)
    wait_until(lambda: "told" in guarded.lines(), "the command was told to stop")
