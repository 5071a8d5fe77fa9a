"""`vlmflow` as the first process of a PID namespace, as it is in a container."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Stands for `vlmflow`: what __main__ does, with a job that does as a test says.
_AS_MAIN = """
import os, sys
from vlmflow.init_process import become_init
assert os.getpid() == 1, os.getpid()
become_init()
{job}
"""


def _can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return subprocess.run(probe, capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(
    not _can_unshare(), reason="no PID namespace can be made here: that takes root"
)


@pytest.fixture
def start():
    processes = []

    def start(job: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
            + [sys.executable, "-c", _AS_MAIN.format(job=job)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def _init_of(process: "subprocess.Popen[str]") -> int:
    """The PID, as we see it, of the namespace's first process."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0])


@pytest.mark.parametrize("code", [0, 2, 75])
def test_the_exit_code_is_the_jobs(start, code):
    assert start(f"sys.exit({code})").wait(20) == code


def test_a_killed_job_has_a_shells_exit_code(start):
    assert start("os.kill(os.getpid(), 9)").wait(20) == 137


def test_a_signal_reaches_the_job_once(start):
    process = start(
        "import signal, time\n"
        "def note(*_): print('told'); time.sleep(0.3); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, note)\n"
        "print('ready')\n"
        "while True: time.sleep(0.05)"
    )
    assert process.stdout.readline() == "ready\n"
    os.kill(_init_of(process), signal.SIGTERM)
    assert process.wait(20) == 75
    assert process.stdout.read() == "told\n"


def test_a_job_that_does_not_listen_yet_is_ended_by_a_signal(start):
    process = start("import time\nprint('ready')\ntime.sleep(60)")
    assert process.stdout.readline() == "ready\n"
    os.kill(_init_of(process), signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM


def test_orphans_are_reaped(start):
    # Ten orphans end at once; none of them may be left as a zombie.
    process = start(
        "import subprocess, time\n"
        "for _ in range(10): subprocess.run(['sh', '-c', 'sleep 0.1 &'])\n"
        "time.sleep(0.2)\n"
        "deadline = time.monotonic() + 10\n"
        "def zombies(): return [p for p in os.listdir('/proc') if p.isdigit()\n"
        "    and os.path.exists(f'/proc/{p}/stat')\n"
        "    and open(f'/proc/{p}/stat').read().rpartition(')')[2].split()[0] == 'Z']\n"
        "while zombies() and time.monotonic() < deadline: time.sleep(0.05)\n"
        "left = [p for p in os.listdir('/proc') if p.isdigit()]\n"
        "print(len(zombies()), sorted(left, key=int) == ['1', str(os.getpid())])"
    )
    assert process.wait(20) == 0
    assert process.stdout.read() == "0 True\n"


def test_the_real_command_line_runs_below_it():
    seen = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
        + [sys.executable, "-m", "vlmflow", "run", "--manifest", "/nowhere/m.jsonl"]
        + ["--model", "/nowhere", "--output", "/nowhere"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert seen.returncode == 2
    assert seen.stderr.startswith("vlmflow: ")


def test_a_signal_while_the_command_line_is_loading_is_not_lost():
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
        + [sys.executable, "-X", "importtime", "-m", "vlmflow", "--help"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:  # what is imported, as it is
        if line.rstrip().endswith("vlmflow.init_process"):
            break
    time.sleep(0.02)
    os.kill(_init_of(process), signal.SIGTERM)
    process.stderr.read()
    process.stderr.close()
    assert process.wait(20) == 128 + signal.SIGTERM
