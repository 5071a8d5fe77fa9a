"""Worker processes: what kills one costs one prompt, and none of them is left behind."""

import gc
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.engine.inputs.fetchers import FILE
from tests.engine.inputs.pictures import encode, noise
from vlmflow_engine.errors import (
    ConfigError,
    EngineUnavailableError,
    PreprocessCrashError,
    RequestError,
)
from vlmflow_engine.inputs import worker_process
from vlmflow_engine.inputs.builder import PreparedInput
from vlmflow_engine.inputs.preprocessor import Prepared
from vlmflow_engine.inputs.prompts import DEFAULT_OPTIONS
from vlmflow_engine.inputs.worker_frames import BuilderSpec, result_frame
from vlmflow_engine.inputs.worker_pool import ProcessPreprocessor, _Crew, _Item
from vlmflow_engine.wire import ConnectionClosedError

Start = Callable[..., ProcessPreprocessor]


@pytest.fixture(scope="module")
def shared(spec: BuilderSpec) -> Iterator[ProcessPreprocessor]:
    """One worker, for the tests that leave it or its successor idle."""
    preprocessor = ProcessPreprocessor(spec, num_workers=1)
    preprocessor.wait_until_ready()
    yield preprocessor
    preprocessor.close()


@pytest.fixture
def start(spec: BuilderSpec) -> Iterator[Start]:
    """Start preprocessors; they are closed when the test ends."""
    started: list[ProcessPreprocessor] = []

    def start_one(num_workers: int = 1, **options: Any) -> ProcessPreprocessor:
        started.append(ProcessPreprocessor(spec, num_workers=num_workers, **options))
        started[-1].wait_until_ready()
        return started[-1]

    yield start_one
    for preprocessor in started:
        preprocessor.close()


@pytest.mark.process
def test_prompt_that_ends_its_worker_costs_itself_only(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    preprocessor = start(num_workers=2)
    deadly = {3: "die", 5: "crash", 6: "leave"}
    with caplog.at_level(logging.WARNING):
        for number in range(12):
            preprocessor.submit(number, ("What is it?", deadly.get(number, "here")))
        results = _take_all(preprocessor)
    assert {n for n, result in results.items() if isinstance(result, RequestError)} == set(deadly)
    assert len(results) == 12
    assert {type(results[number]) for number in deadly} == {PreprocessCrashError}
    assert "signal 9 (Killed)" in str(results[3])
    assert "signal 11 (Segmentation fault)" in str(results[5])
    assert "exit code 3" in str(results[6])
    assert "request 5: its worker was ended by signal 11" in caplog.text
    preprocessor.submit(12, "and now?")
    assert isinstance(_take_all(preprocessor)[12], PreparedInput)


@pytest.mark.process
def test_prompt_that_takes_too_long_costs_itself_only(start: Start) -> None:
    preprocessor = start(wall_seconds=0.5)
    for number, word in enumerate(["here", "sleep", "here"]):
        preprocessor.submit(number, ("What is it?", word))
    results = _take_all(preprocessor)
    assert type(results[1]) is PreprocessCrashError
    assert "took more than 0.5 s" in str(results[1])
    assert isinstance(results[0], PreparedInput) and isinstance(results[2], PreparedInput)


def test_worker_that_ends_while_it_has_nothing_to_do_costs_nobody(
    shared: ProcessPreprocessor,
) -> None:
    [pid] = shared.pids
    os.kill(pid, signal.SIGKILL)
    _wait_until(lambda: not _runs(pid))
    shared.submit(1, ("What is it?", "here"))
    assert isinstance(_take_all(shared)[1], PreparedInput)
    assert shared.pids != [pid]


def test_prompt_is_left_to_a_worker_that_has_none_or_starts_yet(spec: BuilderSpec) -> None:
    crew, done, sent = _Crew(spec, 2, 60.0), queue.SimpleQueue(), deque()
    for number in range(2):
        crew.add(_Item(number, "x", DEFAULT_OPTIONS, done))
    sent.append(crew._next(sent))
    assert sent[0].request_id == 0
    assert crew._next(sent) is None
    crew.add(_Item(2, "x", DEFAULT_OPTIONS, done))
    assert crew._next(sent) is not None


class EndedWorker:
    """Has answered one prompt and died of nothing it was asked; its answer is still unread."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []

    def send(self, frame: dict[str, Any]) -> None:
        if self.frames:
            raise ConnectionClosedError("broken pipe")
        self.frames.append(result_frame(frame["request_id"], PreparedInput((1, 2), ())))

    def receive(self) -> dict[str, Any]:
        if not self.frames:
            raise ConnectionClosedError("end of stream")
        return self.frames.pop()


def test_answer_given_before_the_end_is_not_lost(spec: BuilderSpec) -> None:
    crew, done, sent = _Crew(spec, 1, 60.0), queue.SimpleQueue(), deque()
    for number in range(3):
        crew.add(_Item(number, "x", DEFAULT_OPTIONS, done))
    with pytest.raises(ConnectionClosedError):
        crew._feed(EndedWorker(), sent)
    assert done.get(block=False) == (0, PreparedInput((1, 2), ()))
    assert [item.request_id for item in crew._waiting] == [1, 2]
    assert not sent


def test_prompts_sent_ahead_are_bounded_by_count_and_bytes(
    shared: ProcessPreprocessor, tmp_path: Path
) -> None:
    preprocessor = shared
    for size, num_sent in [(1, 4), (10 << 20, 2), (17 << 20, 1)]:
        gate = tmp_path / f"gate-{size}"
        preprocessor.submit(0, ("What is it?", [f"wait:{gate}", bytes(size)]))
        for number in range(1, 7):
            preprocessor.submit(number, ("What is it?", bytes(size)))
        waiting = preprocessor._crew._waiting
        _wait_until(lambda: len(waiting) == 7 - num_sent)  # noqa: B023
        time.sleep(0.1)  # it would go on if there were no bound
        assert len(waiting) == 7 - num_sent
        gate.touch()
        assert len(_take_all(preprocessor)) == 7


def test_picture_that_is_asked_about_again_takes_no_memory_again(
    shared: ProcessPreprocessor,
) -> None:
    for number in range(2):
        shared.submit(number, (f"question {number}", FILE))
    first, second = _take_all(shared).values()
    assert isinstance(first, PreparedInput) and isinstance(second, PreparedInput)
    assert first.images[0].pixels is second.images[0].pixels


def test_worker_is_small_and_free_of_torch_and_alone_with_its_files(start: Start) -> None:
    with open(os.devnull) as ours:
        os.set_inheritable(ours.fileno(), True)
        preprocessor = start()
    for number in range(24):
        picture = encode(noise(1000, 1000, seed=number), "JPEG", quality=60)
        preprocessor.submit(number, ("What is it?", picture))
    assert all(isinstance(result, PreparedInput) for result in _take_all(preprocessor).values())
    worker = psutil.Process(preprocessor.pids[0])
    assert worker.memory_info().rss < 120 << 20
    maps = Path(f"/proc/{worker.pid}/maps").read_text()
    assert "numpy" in maps
    assert "torch" not in maps
    files = sorted(os.readlink(file) for file in Path(f"/proc/{worker.pid}/fd").iterdir())
    assert files[0] == files[1] == "/dev/null"  # stdin and stdout
    assert [file for file in files if file.startswith("socket:")] == files[-1:]
    assert len(files) == 4


def test_worker_has_limits(shared: ProcessPreprocessor) -> None:
    shared.submit(1, "x")
    _take_all(shared)
    worker = psutil.Process(shared.pids[0])
    assert worker.rlimit(psutil.RLIMIT_DATA)[0] == (1 << 30) + 24 * 4_000_000
    assert worker.rlimit(psutil.RLIMIT_CORE)[0] == 0
    assert 60 <= worker.rlimit(psutil.RLIMIT_CPU)[0] <= 70
    assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text() == "800\n"


def test_ctrl_c_is_not_for_a_worker(shared: ProcessPreprocessor) -> None:
    preprocessor = shared
    [pid] = preprocessor.pids
    assert os.getpgid(pid) != os.getpgid(0)
    os.kill(pid, signal.SIGINT)
    preprocessor.submit(1, "x")
    assert isinstance(_take_all(preprocessor)[1], PreparedInput)
    assert preprocessor.pids == [pid]


def test_closing_ends_every_process_and_thread_and_leaves_no_file_open(spec: BuilderSpec) -> None:
    threads, files = threading.active_count(), os.listdir("/proc/self/fd")
    preprocessor = ProcessPreprocessor(spec, num_workers=2)
    preprocessor.wait_until_ready()
    for number in range(3):  # one of them is busy, the other starts or is
        preprocessor.submit(number, ("What is it?", "sleep"))
    pids = preprocessor.pids
    assert len(pids) == 2
    preprocessor.close()
    preprocessor.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)  # a zombie would still be there
    assert threading.active_count() == threads
    assert os.listdir("/proc/self/fd") == files


def test_closing_while_workers_start_is_no_different(spec: BuilderSpec) -> None:
    for pause in (0, 0.05):
        preprocessor = ProcessPreprocessor(spec, num_workers=1)
        time.sleep(pause)
        pids = preprocessor.pids
        preprocessor.close()
        assert not any(psutil.pid_exists(pid) for pid in [*pids, *preprocessor.pids])


def test_one_that_is_dropped_ends_its_processes(spec: BuilderSpec) -> None:
    preprocessor = ProcessPreprocessor(spec, num_workers=1)
    preprocessor.wait_until_ready()
    [pid] = preprocessor.pids
    del preprocessor
    gc.collect()
    _wait_until(lambda: not psutil.pid_exists(pid))


def test_worker_that_cannot_make_its_builder_is_told_in_a_sentence(
    spec: BuilderSpec, tmp_path: Path
) -> None:
    preprocessor = ProcessPreprocessor(replace(spec, folder=tmp_path), num_workers=1)
    preprocessor.submit(1, "early")
    with pytest.raises(ConfigError, match=r"no tokenizer; .*num_preprocess_workers=0"):
        preprocessor.wait_until_ready()
    preprocessor.submit(2, "late")
    results = _take_all(preprocessor)
    assert {type(result) for result in results.values()} == {EngineUnavailableError}
    assert results.keys() == {1, 2}
    preprocessor.close()


@pytest.mark.parametrize(
    ("attribute", "value", "sentence"),
    [("_MODULE", "no.such.module", "exit code 1"), ("_PYTHON", "/no/python", "/no/python")],
)
def test_worker_that_cannot_start_is_told_in_a_sentence(
    spec: BuilderSpec,
    monkeypatch: pytest.MonkeyPatch,
    attribute: str,
    value: str,
    sentence: str,
) -> None:
    monkeypatch.setattr(worker_process, attribute, value)
    monkeypatch.setattr("vlmflow_engine.inputs.worker_pool._PAUSE_SECONDS", 0.01)
    preprocessor = ProcessPreprocessor(spec, num_workers=1)
    with pytest.raises(ConfigError, match=sentence):
        preprocessor.wait_until_ready()
    preprocessor.close()


# A user's script, with neither a guard nor, in one case, a file; many threads are at work.
SCRIPT = """
import os, sys, threading, time
from pathlib import Path
from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.inputs.fetcher import NamedFetcher
from vlmflow_engine.inputs.worker_frames import BuilderSpec
from vlmflow_engine.inputs.worker_pool import ProcessPreprocessor

folder, form, word, ending = {arguments!r}
for _ in range(50):
    threading.Thread(target=time.sleep, args=(0.3,), daemon=True).start()
fetch = NamedFetcher("tests.engine.inputs.fetchers:by_word")
spec = BuilderSpec(
    folder=Path(folder), image_format=ImageFormat(**form), fetch=fetch, max_image_pixels=1_000_000
)
preprocessor = ProcessPreprocessor(spec, num_workers=2)
preprocessor.wait_until_ready()
preprocessor.submit(1, ("What is it?", "here"))
number, prepared = preprocessor.take(block=True)
assert len(prepared.images) == 1, prepared
if ending == "fork" and os.fork() == 0:  # it holds all that its parent has open
    time.sleep(60)
    os._exit(0)
if word:
    preprocessor.submit(2, ("What is it?", word))  # the other worker starts, or is idle
while len(preprocessor.pids) < 2:
    time.sleep(0.01)
print(*preprocessor.pids, flush=True)
if ending != "return":
    time.sleep(600)
"""


def _script(spec: BuilderSpec, word: str, ending: str) -> str:
    arguments = (str(spec.folder), asdict(spec.image_format), word, ending)
    return SCRIPT.format(arguments=arguments)


def _python(*arguments: str, **options: Any) -> "subprocess.Popen[str]":
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-W", "error", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        **options,
    )


@pytest.mark.process
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_script_without_a_guard_may_end_without_closing(
    spec: BuilderSpec, source: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(_script(spec, "", "return"))
    for name in ("numpy", "queue", "json", "resource"):  # what lies beside it is not imported
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    # As from `python - < script`: standard input is the script, and nobody's else.
    with script.open() as stdin:
        process = (
            _python("-P", str(script), cwd=tmp_path)
            if source == "file"
            else _python("-P", "-", stdin=stdin, cwd=tmp_path)
        )
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    pids = [int(pid) for pid in out.split()]
    assert len(pids) == 2
    _wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


@pytest.mark.process
@pytest.mark.parametrize(("word", "ending"), [("spin", "killed"), ("", "fork")])
def test_worker_does_not_outlive_a_parent_that_is_killed(
    spec: BuilderSpec, word: str, ending: str
) -> None:
    with _python("-c", _script(spec, word, ending), start_new_session=True) as process:
        assert process.stdout
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2, process.stderr and process.stderr.read()
        process.kill()
        try:
            _wait_until(lambda: not any(_runs(pid) for pid in pids))
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the fork


def test_prompt_that_computes_too_long_is_ended_by_the_kernel() -> None:
    code = (
        "from vlmflow_engine.inputs import worker\n"
        "worker.CPU_SECONDS = 0\nworker._limit_cpu()\nwhile True: pass"
    )
    with _python("-c", code) as process:
        assert process.wait(60) == -signal.SIGXCPU


def _take_all(preprocessor: ProcessPreprocessor) -> dict[int, Prepared]:
    taken = {}
    while item := preprocessor.take(block=True):
        assert item[0] not in taken
        taken[item[0]] = item[1]
    return taken


def _runs(pid: int) -> bool:
    """Whether it does; a zombie, which nobody in its session reaps, does not.

    Of a killed process the first thread may be gone while another one still holds its files.
    """
    try:
        if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            return True
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
