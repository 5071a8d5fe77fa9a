"""Whatever the order of work, users read one line a record in the manifest's order."""

import json
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmflow.job import results
from vlmflow.job.commit_log import CommitLog
from vlmflow.job.layout import FAILURES, RESULTS, shard_prefix
from vlmflow.job.plan import Plan, SetAside, cut
from vlmflow.job.record import Failure, Outcome
from vlmflow.job.results import CountsError, ResultsView, view_writers
from vlmflow.job.store import Store
from vlmflow.job.store.folder import FolderStore

REASON = Failure("manifest", "duplicate_id", "line 2: id 'r1' stands in line 1 already")
TEXT = "two\nlines, \u2028\u0085\r\x1c and \u00fc\U0001f600"


def make_plan(num_records: int, set_aside: Set[int] = frozenset()) -> Plan:
    items = {n: SetAside(n, n + 1, f"r{n}", "skipped", REASON) for n in set_aside}
    return Plan("etag", "0" * 64, 100, "native", num_records, items, {}, cut(num_records, 1))


def line_of(ordinal: int) -> dict[str, Any]:
    return {"id": f"r{ordinal}", "ordinal": ordinal, "text": TEXT}


def commit(store: Store, plan: Plan, batches: list[tuple[int, list[int]]]) -> CommitLog:
    """Commit batches of ordinals, each by the worker of an epoch; return a fresh log."""
    logs: dict[int, CommitLog] = {}
    for epoch, ordinals in batches:
        if epoch not in logs:
            logs[epoch] = CommitLog(
                store, shard_prefix(0, 0), num_records=plan.num_records, epoch=epoch
            )
        logs[epoch].load()
        logs[epoch].commit([Outcome(ordinal, line_of(ordinal)) for ordinal in ordinals])
    log = CommitLog(store, shard_prefix(0, 0), num_records=plan.num_records, epoch=1000)
    log.load()
    return log


@given(data=st.data(), num_records=st.integers(1, 25))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_way_to_commit_gives_the_manifests_order(
    data: st.DataObject, num_records: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store, folder = FolderStore(tmp_path_factory.mktemp("s")), tmp_path_factory.mktemp("f")
    set_aside = data.draw(st.sets(st.integers(0, num_records - 1)), "set aside")
    plan = make_plan(num_records, set_aside)
    left = data.draw(st.permutations(sorted(set(range(num_records)) - set_aside)), "order")
    batches = []
    while left:
        size = data.draw(st.integers(1, len(left)), "batch")
        batches.append((data.draw(st.integers(0, 2), "epoch"), left[:size]))
        left = left[size:]
    view = ResultsView(store, [commit(store, plan, batches).part_keys()], plan, folder)
    lines = list(view.lines())
    assert [line["ordinal"] for _, line in lines] == list(range(num_records))
    for raw, line in lines:
        assert json.loads(raw) == line
        assert raw.count(b"\n") == 1 and raw.endswith(b"\n")
        if line["ordinal"] in set_aside:
            assert line["error"] == REASON.as_dict()
        else:
            assert line == line_of(line["ordinal"])


def test_view_may_be_read_more_than_once(store: Store, tmp_path: Path) -> None:
    plan = make_plan(4)
    log = commit(store, plan, [(0, [3, 1]), (1, [0, 2])])
    view = ResultsView(store, [log.part_keys()], plan, tmp_path)
    assert list(view.lines()) == list(view.lines())


def double(part: list[bytes]) -> list[bytes]:
    return [*part, part[0]]


def lose(part: list[bytes]) -> list[bytes]:
    return part[1:]


def take_another(part: list[bytes]) -> list[bytes]:
    return [*part, json.dumps(line_of(1)).encode() + b"\n"]


def take_one_beyond(part: list[bytes]) -> list[bytes]:
    return [*part, json.dumps(line_of(4)).encode() + b"\n"]


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (double, "part-000000-00000000.jsonl holds record 0, which is committed twice"),
        (lose, "1 records of the manifest have no committed line"),
        (take_another, "holds record 1, which was not asked"),
        (take_one_beyond, "holds record 4, which was not asked"),
    ],
)
def test_part_that_is_not_what_its_commit_says_is_found_out(
    harm: Callable[[list[bytes]], list[bytes]], sentence: str, store: Store, tmp_path: Path
) -> None:
    plan = make_plan(4, {1})
    log = commit(store, plan, [(0, [0, 2]), (0, [3])])
    key = log.part_keys()[0]
    store.write(key, b"".join(harm(store.read(key).splitlines(keepends=True))))
    with pytest.raises(CountsError, match=sentence):
        ResultsView(store, [log.part_keys()], plan, tmp_path)


def test_record_that_nobody_committed_is_missed(store: Store, tmp_path: Path) -> None:
    plan = make_plan(4, {1})
    with pytest.raises(CountsError, match="2 records of the manifest have no committed line"):
        ResultsView(store, [commit(store, plan, [(0, [0])]).part_keys()], plan, tmp_path)


def test_record_in_two_parts_is_found_out(store: Store, tmp_path: Path) -> None:
    plan = make_plan(3)
    log = commit(store, plan, [(0, [0, 1]), (1, [2])])
    first, second = log.part_keys()
    store.write(second, store.read(first))
    with pytest.raises(CountsError, match="part-000001-00000000.jsonl holds record 0"):
        ResultsView(store, [log.part_keys()], plan, tmp_path)


@pytest.mark.parametrize("num_lines", [0, 1, 3, 4, 6, 7])
def test_view_is_cut_into_files_and_there_is_always_a_first_one(
    num_lines: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "LINES_PER_FILE", 3)
    lines = [b"%d\n" % number for number in range(num_lines)]
    succeeded, failed = view_writers(store)
    for line in lines:
        succeeded.write(line)
    for writer in (succeeded, failed):
        writer.flush()
    keys = list(store.list(RESULTS))
    assert keys == [f"results/{n:05d}.jsonl" for n in range(max(1, -(-num_lines // 3)))]
    files = [store.read(key).splitlines(keepends=True) for key in keys]
    assert [line for file in files for line in file] == lines
    assert all(len(file) <= 3 for file in files)
    assert [store.read(key) for key in store.list(FAILURES)] == [b""]


def test_files_of_a_longer_view_written_before_are_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "LINES_PER_FILE", 2)
    store.write(f"{FAILURES}notes.jsonl", b"a user's")
    for num_lines in (7, 3):
        _, writer = view_writers(store)
        for number in range(num_lines):
            writer.write(b"%d\n" % number)
        writer.close()
    names = ["00000.jsonl", "00001.jsonl", "notes.jsonl"]
    assert list(store.list(FAILURES)) == [f"{FAILURES}{name}" for name in names]
    assert [store.read(f"{FAILURES}{name}") for name in names[:2]] == [b"0\n1\n", b"2\n"]


def test_a_committed_part_that_was_removed_is_named(store: Store, tmp_path: Path) -> None:
    plan = make_plan(2)
    log = commit(store, plan, [(0, [0, 1])])
    [key] = log.part_keys()
    store.delete(key)
    with pytest.raises(CountsError, match=f"{key} does not exist, but it is committed"):
        ResultsView(store, [log.part_keys()], plan, tmp_path)
