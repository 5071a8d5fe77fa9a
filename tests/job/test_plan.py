"""The plan says what a manifest holds, and holds the job to that very manifest."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import psutil
import pytest

from tests.job.faulty_s3 import FaultyS3, refuse
from vlmflow.job.errors import IdentityError, ManifestError
from vlmflow.job.layout import PLAN, dump
from vlmflow.job.manifest import Manifest
from vlmflow.job.plan import Plan
from vlmflow.job.planning import find_plan, save_plan
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import Store, StoreOpener
from vlmflow.job.store.folder import FolderStore

KEY = "in/m.jsonl"

T = TypeVar("T")


def line(record_id: str, **more: Any) -> str:
    return json.dumps({"id": record_id, "prompt": "x"} | more)


def write(store: Store, *lines: str, key: str = KEY) -> bytes:
    data = "".join(f"{line}\n" for line in lines).encode()
    store.write(key, data)
    return data


def manifest_of(opener: StoreOpener, uri: str, **options: Any) -> Manifest:
    values = {"manifest": uri, "model": "m", "output": "o", "dialect": "native"} | options
    return Manifest(opener, JobSpec.parse(values))


@pytest.fixture
def manifest(store: Store, opener: StoreOpener) -> Manifest:
    """The manifest under KEY, which a test writes."""
    return manifest_of(opener, f"{store.uri}/{KEY}")


def with_limit(manifest: Manifest, store: Store, opener: StoreOpener, limit: int) -> Manifest:
    return manifest_of(opener, f"{store.uri}/{KEY}", limit=limit)


def ids(manifest: Manifest, plan: Plan) -> list[str]:
    return [record.record_id for record in manifest.records(plan, plan.shards[0])]


def test_plan_counts_and_digests_the_whole_manifest(manifest: Manifest, store: Store) -> None:
    data = write(store, line("a"), "", line("b"), "  ", line("c"))
    plan = manifest.make_plan()
    assert (plan.num_records, plan.set_aside) == (3, {})
    assert (plan.sha256, plan.num_bytes) == (sha256(data).hexdigest(), len(data))
    assert plan.etag == manifest.etag() == store.stat(KEY).etag
    assert ids(manifest, plan) == ["a", "b", "c"]


def test_of_records_with_the_same_id_the_first_is_kept(manifest: Manifest, store: Store) -> None:
    write(store, line("a"), line("b"), "", line("a", extra=1), line("a"), line("b"))
    plan = manifest.make_plan()
    assert {ordinal: item.kind for ordinal, item in plan.set_aside.items()} == dict.fromkeys(
        (2, 3, 4), "skipped"
    )
    item = plan.set_aside[2]
    assert (item.ordinal, item.line, item.record_id) == (2, 4, "a")
    assert item.failure.error_class == "duplicate_id"
    assert item.failure.message == "line 4: id 'a' stands in line 1 already; the first is kept"
    assert [(r.record_id, r.line) for r in manifest.records(plan, plan.shards[0])] == [
        ("a", 1),
        ("b", 2),
    ]


def test_bad_lines_are_set_aside_and_claim_no_id(manifest: Manifest, store: Store) -> None:
    write(store, "{", line("a", error="x"), line("a"), line("b"))
    plan = manifest.make_plan()
    assert {ordinal: item.kind for ordinal, item in plan.set_aside.items()} == {
        0: "failed",
        1: "failed",
    }
    assert (plan.set_aside[0].record_id, plan.set_aside[1].record_id) == (None, "a")
    assert [record.ordinal for record in manifest.records(plan, plan.shards[0])] == [2, 3]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 100])
def test_limit_takes_the_first_records_and_still_digests_all(
    limit: int, manifest: Manifest, store: Store, opener: StoreOpener
) -> None:
    lines = [line("a"), "{", line("a"), line("b")]
    data = write(store, *lines)
    limited = with_limit(manifest, store, opener, limit)
    plan = limited.make_plan()
    assert plan.num_records == min(limit, len(lines))
    assert list(plan.set_aside) == [ordinal for ordinal in (1, 2) if ordinal < limit]
    assert ids(limited, plan) == (["a", "b"] if limit > 3 else ["a"])
    assert (plan.sha256, plan.num_bytes) == (sha256(data).hexdigest(), len(data))


@pytest.mark.parametrize("lines", [(), ("",), ("", "  ", "")])
def test_manifest_without_a_record_is_refused(
    lines: tuple[str, ...], manifest: Manifest, store: Store
) -> None:
    write(store, *lines)
    with pytest.raises(ManifestError, match=r"in/m.jsonl' has no records"):
        manifest.make_plan()


def test_manifest_of_bad_lines_only_is_a_plan_with_nothing_to_ask(
    manifest: Manifest, store: Store
) -> None:
    write(store, "{", "[]")
    plan = manifest.make_plan()
    assert plan.num_records == 2
    assert ids(manifest, plan) == []


def test_manifest_that_is_not_there_is_named(manifest: Manifest) -> None:
    for read in (manifest.etag, manifest.make_plan):
        with pytest.raises(ManifestError, match=r"in/m.jsonl'.* does not exist"):
            read()


def test_folder_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=tmp_path.name):
        manifest_of(StoreOpener(), str(tmp_path)).etag()


def test_manifest_without_permission_is_named(faulty_s3: FaultyS3, bucket: str) -> None:
    faulty_s3.always("HEAD", refuse(403, "AccessDenied"))
    manifest = manifest_of(StoreOpener(faulty_s3.url), f"s3://{bucket}/{KEY}")
    with pytest.raises(ManifestError, match="access denied"):
        manifest.etag()


def test_plan_is_read_back_as_it_was_written(manifest: Manifest, store: Store) -> None:
    write(store, line("\u00fc\u2028"), "{", line("\u00fc\u2028"), line("b"))
    plan = manifest.make_plan()
    values = json.loads(dump(plan.as_dict(manifest.uri)))
    assert Plan.from_dict(values) == plan
    assert values["manifest"]["uri"] == manifest.uri
    assert ids(manifest, Plan.from_dict(values)) == ["\u00fc\u2028", "b"]


def test_plan_that_was_saved_is_taken_without_reading_the_manifest_again(
    manifest: Manifest, store: Store
) -> None:
    write(store, line("a"), line("b"))
    values = manifest.make_plan().as_dict(manifest.uri)
    values["num_records"] = 1  # as nobody would find it out who reads the manifest
    store.write(PLAN, dump(values))
    assert find_plan(store, manifest).num_records == 1


def test_manifest_that_was_replaced_is_read_again(manifest: Manifest, store: Store) -> None:
    write(store, line("a"))
    save_plan(store, find_plan(store, manifest), manifest.uri)
    write(store, line("a"), line("b"))
    plan = find_plan(store, manifest)
    assert ids(manifest, plan) == ["a", "b"]
    with pytest.raises(IdentityError, match="plan of another manifest"):
        save_plan(store, plan, manifest.uri)


def test_copy_of_the_manifest_has_the_same_plan(
    manifest: Manifest, store: Store, opener: StoreOpener
) -> None:
    write(store, line("a"), line("a"))
    save_plan(store, find_plan(store, manifest), manifest.uri)
    write(store, line("a"), line("a"), key="copy.jsonl")
    copy = manifest_of(opener, f"{store.uri}/copy.jsonl")
    plan = find_plan(store, copy)
    save_plan(store, plan, copy.uri)
    assert plan.sha256 == manifest.make_plan().sha256
    assert ids(copy, plan) == ["a"]


def test_manifest_that_changes_while_the_job_runs_ends_it(manifest: Manifest, store: Store) -> None:
    write(store, line("a"), line("b"))
    plan = manifest.make_plan()
    write(store, line("a"), line("c"), line("d"))
    with pytest.raises(ManifestError, match="was changed while the job ran"):
        list(manifest.records(plan, plan.shards[0]))


def test_manifest_that_goes_away_while_the_job_runs_is_named(
    manifest: Manifest, store: Store
) -> None:
    write(store, line("a"))
    plan = manifest.make_plan()
    store.delete(KEY)
    with pytest.raises(ManifestError, match=r"in/m.jsonl"):
        list(manifest.records(plan, plan.shards[0]))


def test_hundred_thousand_lines_take_little_memory(tmp_path: Path) -> None:
    num_lines, prompt = 100_000, "x" * 1000
    with (tmp_path / "m.jsonl").open("w") as file:
        file.writelines(f"{line(f'record-{n}', prompt=prompt)}\n" for n in range(num_lines))
    manifest = manifest_of(StoreOpener(), str(tmp_path / "m.jsonl"))
    # Of a file of 100 MiB: 16 bytes an id with all that Python puts around them, then nothing.
    plan, growth = with_growth(manifest.make_plan)
    assert growth < 40 << 20
    num_records, growth = with_growth(
        lambda: sum(1 for _ in manifest.records(plan, plan.shards[0]))
    )
    assert num_records == num_lines
    assert growth < 10 << 20


def with_growth(call: Callable[[], T]) -> tuple[T, int]:
    """Return what a call returns, and by how many bytes the process grew at most meanwhile."""
    process, is_over = psutil.Process(), Event()
    sizes = [process.memory_info().rss]

    def watch() -> None:
        while not is_over.wait(0.02):
            sizes.append(process.memory_info().rss)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(watch)
        try:
            return call(), max(sizes) - sizes[0]
        finally:
            is_over.set()


def test_saving_the_same_plan_twice_is_harmless(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    write(store, line("a"))
    manifest = manifest_of(StoreOpener(), f"{tmp_path}/{KEY}")
    for _ in range(2):
        save_plan(store, manifest.make_plan(), manifest.uri)
    assert find_plan(store, manifest) == manifest.make_plan()


def test_few_records_are_read_again_by_their_ordinals(store: Store, manifest: Manifest) -> None:
    write(store, line("a"), "", "no JSON", line("c", prompt="c?"), "  ", line("d"), line("e"))
    plan = manifest.make_plan()
    found = manifest.pick(plan, [0, 1, 2, 4, 99])
    assert {n: (record.record_id, record.line) for n, record in found.items()} == {
        0: ("a", 1),
        2: ("c", 4),
        4: ("e", 7),
    }
    assert found[2].prompt == [{"role": "user", "content": [{"type": "text", "text": "c?"}]}]
    assert manifest.pick(plan, []) == {}


def test_records_of_a_changed_manifest_are_not_read_again(store: Store, manifest: Manifest) -> None:
    write(store, line("a"))
    plan = manifest.make_plan()
    write(store, line("other"))
    with pytest.raises(ManifestError, match="was changed"):
        manifest.pick(plan, [0])
