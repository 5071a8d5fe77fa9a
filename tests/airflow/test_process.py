"""The worker's hand on a job's process."""

import os
import time

import pytest

from tests.airflow.jobs import stand_in, wait_until
from vlmflow.airflow.process import AttachedProcess, DetachedProcess


def follow(process: AttachedProcess) -> tuple[list[str], object]:
    said: list[str] = []
    return said, process.follow(said.append, lambda: None)


def attach(script: str, tmp_path, **more):
    options = {"environment": os.environ, "grace_seconds": 1.0} | more
    return AttachedProcess([stand_in(tmp_path, script)], **options)


def test_lines_come_as_they_are_written(tmp_path):
    process = attach("echo one; echo two >&2; sleep 1; printf three", tmp_path)
    moments: list[tuple[str, float]] = []
    ended = process.follow(lambda line: moments.append((line, time.monotonic())), lambda: None)
    assert [line for line, _ in moments] == ["one", "two", "three"]
    assert moments[2][1] - moments[1][1] > 0.5
    assert (ended.code, ended.tail) == (0, ("one", "two", "three"))


def test_standard_input_is_what_was_given(tmp_path):
    said, _ = follow(attach("cat", tmp_path, given="a spec"))
    assert said == ["a spec"]


def test_output_that_is_wanted_is_kept_apart_from_the_lines(tmp_path):
    said, ended = follow(attach("echo data; echo talk >&2", tmp_path, with_output=True))
    assert (said, ended.output) == (["talk"], "data\n")


def test_a_line_without_an_end_does_not_fill_memory(tmp_path):
    said, _ = follow(attach("head -c 300000 /dev/zero | tr '\\0' x", tmp_path))
    assert sum(map(len, said)) == 300_000
    assert max(map(len, said)) <= 128 << 10


def test_an_error_while_it_is_followed_ends_it(tmp_path):
    process = attach("echo $$; exec sleep 333", tmp_path)

    def fail(line: str) -> None:
        raise TimeoutError(line)

    with pytest.raises(TimeoutError) as error:
        process.follow(fail, lambda: None)
    with pytest.raises(ProcessLookupError):
        os.kill(int(str(error.value)), 0)


def test_the_reason_is_the_last_thing_that_was_said(tmp_path):
    _, ended = follow(
        attach("echo first; echo 'vlmflow: no such manifest'; echo; exit 2", tmp_path)
    )
    assert ended.reason == "no such manifest"


def test_no_program_is_an_error_of_ours(tmp_path):
    with pytest.raises(FileNotFoundError, match="no program on this machine"):
        AttachedProcess([str(tmp_path / "none")], environment={}, grace_seconds=1)


def detach(tmp_path, script: str) -> DetachedProcess:
    return DetachedProcess.start(
        tmp_path / "folder",
        [stand_in(tmp_path, script)],
        environment=os.environ,
        given="",
        grace_seconds=1.0,
        digest="d",
    )


def test_a_detached_process_is_found_again_and_tells_how_it_ended(tmp_path):
    process = detach(tmp_path, "trap 'exit 75' TERM; echo working; while :; do sleep 0.05; done")
    wait_until(lambda: list(process.lines()) == ["working"], "it has begun")
    found = DetachedProcess.find(tmp_path / "folder")
    assert found is not None and found.as_dict() == process.as_dict()
    found.terminate()
    wait_until(lambda: not found.is_running, "it has ended")
    assert DetachedProcess.find(tmp_path / "folder") is None
    ended = DetachedProcess.of(process.as_dict()).ended()
    assert (ended.code, ended.tail[0]) == (75, "working")


def test_of_a_process_of_another_machine_nothing_is_known(tmp_path):
    process = detach(tmp_path, "exit 0")
    wait_until(lambda: (tmp_path / "folder" / "exit").exists(), "it has ended")
    process.described["boot_id"] = "another"
    assert not process.is_here
    assert process.ended().code is None
    process.terminate()  # must not reach for a pid that is another's here
