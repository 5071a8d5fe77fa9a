"""Duplicates by policy, and shards that begin in the middle of a manifest of any dialect."""

import gzip
import json
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.job.dialects.manifests import LINE_DIALECTS, LINES, NEEDS_PROMPT, PROMPT
from vlmflow.job import manifest as manifests
from vlmflow.job.dialects import DIALECTS
from vlmflow.job.dialects.reading import START
from vlmflow.job.dialects.writers import LINE_WRITERS
from vlmflow.job.errors import ManifestError
from vlmflow.job.manifest import Manifest
from vlmflow.job.plan import Plan
from vlmflow.job.spec import Dialect, JobSpec, OutputDialect
from vlmflow.job.store import StoreOpener

ID_FIELDS = {"native": "id", "bedrock": "recordId", "gemini": "key"}


def manifest_of(path: Path, data: bytes, **options: Any) -> Manifest:
    path.write_bytes(data)
    values = {"manifest": str(path), "model": "m", "output": "o"} | options
    return Manifest(StoreOpener(), JobSpec.parse(values))


def lines(*ids: str) -> bytes:
    return b"".join(json.dumps({"id": name, "prompt": "x"}).encode() + b"\n" for name in ids)


def asked(manifest: Manifest, plan: Plan) -> list[tuple[int, str]]:
    return [(r.ordinal, r.record_id) for s in plan.shards for r in manifest.records(plan, s)]


def test_the_spec_knows_the_dialects_that_are_read_and_written() -> None:
    assert set(get_args(Dialect)) == {"auto", *DIALECTS}
    assert set(get_args(OutputDialect)) == {*LINE_WRITERS, "parquet"}


def test_an_id_that_stands_twice_can_fail_the_manifest(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path / "m", lines("a", "b", "a"), duplicates="fail")
    with pytest.raises(ManifestError, match="line 3: id 'a' stands in line 1 already; --dupl"):
        manifest.make_plan()


def test_suffixes_make_every_id_another_one(tmp_path: Path) -> None:
    ids = ["a", "a", "a-2", "b", "a", "a-2", "a-4"]
    manifest = manifest_of(tmp_path / "m", lines(*ids), duplicates="suffix", num_shards=2)
    plan = manifest.make_plan()
    assert plan.set_aside == {}
    names = [name for _, name in asked(manifest, plan)]
    assert names == ["a", "a-2", "a-2-2", "b", "a-3", "a-2-3", "a-4"]
    assert len(set(names)) == len(ids)
    there = Plan.from_dict(json.loads(json.dumps(plan.as_dict(manifest.uri))))
    assert asked(manifest, there) == asked(manifest, plan)


def test_suffixes_do_not_depend_on_the_limit(tmp_path: Path) -> None:
    options = {"duplicates": "suffix", "limit": 2}
    manifest = manifest_of(tmp_path / "m", lines("a", "a", "a"), **options)
    assert asked(manifest, manifest.make_plan()) == [(0, "a"), (1, "a-2")]


@pytest.mark.parametrize("num_shards", [1, 3, 40])
@pytest.mark.parametrize("packing", ["plain", "gzip"])
@pytest.mark.parametrize("dialect", LINE_DIALECTS)
def test_shards_of_any_dialect_hold_every_record_once(
    dialect: str, packing: str, num_shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "_MAX_MARKS", 6)
    field = ID_FIELDS.get(dialect, "custom_id")
    rows = [
        LINES[dialect] | ({} if dialect == "ground-truth" else {field: f"r{n}"}) for n in range(30)
    ]
    data = "\n\n".join(json.dumps(row) for row in rows).encode()
    options: dict[str, Any] = {"prompt": PROMPT} if dialect in NEEDS_PROMPT else {}
    manifest = manifest_of(
        tmp_path / "m",
        gzip.compress(data) if packing == "gzip" else data,
        num_shards=num_shards,
        **options,
    )
    plan = manifest.make_plan()
    assert plan.dialect == dialect
    assert [ordinal for ordinal, _ in asked(manifest, plan)] == list(range(30))
    starts = {shard.start for shard in plan.shards}
    assert (starts == {START}) == (packing == "gzip" or num_shards == 1)
    for shard in plan.shards:
        assert shard.start.ordinal <= shard.first_ordinal
        assert len(starts) <= 7
        # What was before it was read by nobody.
        reading = manifest.read(plan, shard.start)
        first = next(iter(reading))
        assert first.ordinal == shard.start.ordinal
        assert first.line == 2 * first.ordinal + 1
