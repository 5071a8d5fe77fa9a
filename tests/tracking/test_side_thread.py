"""Calls and points reach the server in order; whoever hands them in never waits."""

import threading
import time

import pytest

from vlmflow.tracking import side_thread
from vlmflow.tracking.metric_point import MAX_BATCH, MetricPoint
from vlmflow.tracking.side_thread import SideThread


@pytest.fixture(autouse=True)
def fast_flush(monkeypatch):
    monkeypatch.setattr(side_thread, "FLUSH_SECONDS", 0.01)


class Server:
    """Records what it is sent; may be slow or down."""

    def __init__(self) -> None:
        self.batches: list[list[MetricPoint]] = []
        self.runs: list[str] = []  # of each batch
        self.errors: list[Exception] = []
        self.is_down = False
        self.gate = threading.Event()
        self.gate.set()

    def send(self, run: str, points: list[MetricPoint]) -> None:
        assert self.gate.wait(20)
        if self.is_down:
            raise ConnectionError("down")
        self.runs.append(run)
        self.batches.append(points)

    def thread(self) -> SideThread:
        thread = SideThread(self.send, self.errors.append)
        thread.start()
        return thread


def test_all_points_arrive_in_order_and_in_few_batches():
    server = Server()
    server.gate.clear()
    thread = server.thread()
    for step in range(3000):
        thread.add_points("job", step, {"a": step, "b": -step})
    server.gate.set()
    assert thread.close(10)
    sent = [point for batch in server.batches for point in batch]
    assert [p.step for p in sent if p.key == "a"] == list(range(3000))
    assert all(len(batch) <= MAX_BATCH for batch in server.batches)
    assert len(server.batches) <= 8
    assert all(abs(point.timestamp_ms / 1000 - time.time()) < 60 for point in sent)


def test_handing_in_never_waits_for_a_server_that_does_not_answer():
    server = Server()
    server.gate.clear()
    thread = server.thread()
    start = time.monotonic()
    for step in range(side_thread.MAX_POINTS):
        thread.add_points("job", step, {"a": 1.0, "b": 2.0})
    assert time.monotonic() - start < 5
    assert thread.num_dropped > 0
    assert not thread.close(0.05)
    server.gate.set()


def test_a_failing_call_is_reported_and_the_next_one_still_tried():
    server = Server()
    thread = server.thread()
    done = []

    def fail() -> None:
        raise ValueError("no")

    thread.call(fail)
    thread.call(lambda: done.append(1))
    assert thread.drain(5)
    assert done == [1]
    assert [str(error) for error in server.errors] == ["no"]
    assert thread.close(5)


def test_a_server_that_is_down_for_a_while_costs_only_what_was_sent_then():
    server = Server()
    thread = server.thread()
    server.is_down = True
    thread.add_points("job", 1, {"a": 1.0})
    assert thread.drain(5)
    server.is_down = False
    thread.add_points("job", 2, {"a": 2.0})
    assert thread.close(5)
    assert [p.step for batch in server.batches for p in batch] == [2]
    assert server.errors


def test_points_are_sent_before_a_call_that_came_after_them():
    server = Server()
    thread = server.thread()
    seen = []
    thread.add_points("job", 1, {"a": 1.0})
    thread.call(lambda: seen.append(len(server.batches)))
    assert thread.close(5)
    assert seen == [1]


def test_points_of_several_runs_are_sent_apart_and_in_order():
    server = Server()
    server.gate.clear()
    thread = server.thread()
    for step, run in enumerate(("a", "a", "b", "a")):
        thread.add_points(run, step, {"x": 1.0})
    server.gate.set()
    assert thread.close(5)
    steps_of = [[point.step for point in batch] for batch in server.batches]
    flat = [(run, s) for run, steps in zip(server.runs, steps_of, strict=True) for s in steps]
    assert flat == [("a", 0), ("a", 1), ("b", 2), ("a", 3)]


def test_what_is_not_sent_when_the_end_comes_is_handed_back():
    server = Server()
    server.gate.clear()
    thread = server.thread()
    thread.add_points("a", 1, {"x": 1.0})
    time.sleep(0.1)  # the server has it and does not answer
    thread.add_points("a", 2, {"x": 1.0})
    thread.add_points("b", 3, {"x": 1.0})
    started = []
    thread.call(lambda: started.append(1))
    assert not thread.close(0.05)
    left = [(run, [p.step for p in points]) for run, points in thread.left()]
    assert left == [("a", [1]), ("a", [2]), ("b", [3])]
    server.gate.set()
    time.sleep(0.1)
    assert started == [], "an end that has come begins nothing more"
