"""Whatever the bytes and the dialect: items in order, from any position, in any packing."""

import copy
import gzip
import json
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack
import pyarrow
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.job.dialects.manifests import (
    KEY,
    LINE_DIALECTS,
    LINES,
    PROMPT,
    read,
    read_from,
    reader,
    reason,
)
from vlmflow.job.dialects import DIALECTS, BadLine, ManifestReader, lines, manifest_etag
from vlmflow.job.errors import ManifestError, SpecError
from vlmflow.job.record import Record
from vlmflow.job.store import Store
from vlmflow.job.store.folder import FolderStore

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) within a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], dict | list):
            found += places(value[key])
    return found


@st.composite
def nearly_lines(draw: st.DrawFn, dialect: str) -> bytes:
    """An example of a dialect in which some values are others, or gone."""
    line = copy.deepcopy(LINES[dialect])
    for _ in range(draw(st.integers(0, 2))):
        found = places(line)
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        if draw(st.booleans()):
            container[key] = draw(json_values)
        else:
            del container[key]
    if draw(st.integers(0, 4)) == 0:
        line[draw(st.sampled_from(["error", "expected", "metadata", "x"]))] = draw(json_values)
    return json.dumps(line).encode()


def manifests_of(dialect: str) -> st.SearchStrategy[bytes]:
    line = st.one_of(
        nearly_lines(dialect),
        nearly_lines(dialect),
        st.binary(max_size=30),
        st.sampled_from([b"", b" \t", b"\r", b"{}", b"null", b"\xef\xbb\xbf", b"\xed\xa0\x80"]),
        *(st.just(json.dumps(other).encode()) for other in LINES.values()),
    )
    return st.lists(line, max_size=6).map(b"\n".join)


csv_texts = st.lists(
    st.sampled_from(
        ["id", "prompt", "images", ",", ",", "\n", "\r\n", '"', '""', "x", "é", "\0", " ", "[", "]"]
    ),
    max_size=30,
).map("".join)
csv_manifests = st.one_of(
    st.binary(max_size=60),
    st.builds(lambda head, rest: (head + rest).encode(), st.just("id,prompt,image\n"), csv_texts),
    st.builds(
        lambda rows: b"id,prompt,images,more\n" + b"\n".join(rows),
        st.lists(
            st.sampled_from([b'a,"x\ny",a.png,1', b"b,x,,", b'c,"x""y",[],', b"d,x", b'"', b""])
        ),
    ),
)
arrays = st.one_of(
    st.binary(max_size=60),
    st.lists(json_values, max_size=5).map(
        lambda keys: json.dumps([{"prefix": "s3://bucket/"}, *keys]).encode()
    ),
    st.lists(st.sampled_from(["a.png", 5, None, "\ud800"]), max_size=5).map(
        lambda keys: json.dumps([{"prefix": "s3://b/"}, *keys], indent=1).encode()
    ),
)
ANY_BYTES = {d: manifests_of(d) for d in LINE_DIALECTS} | {
    "csv": csv_manifests,
    "sagemaker-manifest": arrays,
}
packings = st.sampled_from(["plain", "gzip", "zstd", "two members"])


def pack(data: bytes, packing: str) -> bytes:
    if packing == "gzip":
        return gzip.compress(data)
    if packing == "zstd":
        return pyarrow.compress(data, codec="zstd", asbytes=True)
    if packing == "two members":
        return gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :])
    return data


@pytest.mark.parametrize("dialect", ANY_BYTES)
@given(data=st.data())
@settings(max_examples=60)
def test_any_bytes_become_the_same_items_from_every_position_and_in_every_packing(
    dialect: str, data: st.DataObject
) -> None:
    content = data.draw(ANY_BYTES[dialect], "content")
    assume(not content.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")))  # that is packed by itself
    with tempfile.TemporaryDirectory() as folder:
        try:
            manifest = reader(Path(folder), content, dialect)
            found = read_from(manifest)
        except ManifestError as error:
            assert dialect in ("csv", "sagemaker-manifest"), error
            return
        items = [item for item, _ in found]
        assert [item.ordinal for item in items] == list(range(len(items)))
        positions = [position for _, position in found]
        assert [p.ordinal for p in positions] == list(range(1, len(items) + 1))
        if dialect in LINE_DIALECTS:
            numbers = [n for n, line in enumerate(content.split(b"\n"), 1) if line.strip()]
            assert [item.line for item in items] == numbers
        for item in items:
            check_can_be_sent_and_written(item)
        for index, position in enumerate(positions):
            assert read_from(manifest, position) == found[index + 1 :]
        packing = data.draw(packings, "packing")
        chunk_bytes = data.draw(st.integers(1, 50), "chunk_bytes")
        other = reader(Path(folder), pack(content, packing), dialect, chunk_bytes)
        assert read_from(other) == found
        if positions:
            middle = len(positions) // 2
            assert read_from(other, positions[middle]) == found[middle + 1 :]


def check_can_be_sent_and_written(item: Record | BadLine) -> None:
    json.dumps(item.record_id, ensure_ascii=False).encode()
    if isinstance(item, BadLine):
        assert item.failure.message
        json.dumps(item.failure.as_dict(), ensure_ascii=False).encode()
    else:
        msgpack.packb([item.ordinal, item.prompt, item.generation])
        passed_on = [item.image_uris, item.passed_through]
        json.dumps(passed_on, ensure_ascii=False, allow_nan=False).encode()


@given(content=st.one_of(st.binary(max_size=80), *ANY_BYTES.values()))
@settings(max_examples=300)
def test_dialect_of_any_bytes_is_found_or_refused_in_one_sentence(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            manifest = reader(Path(folder), content, prompt=None)
            items = list(manifest.items())
        except (ManifestError, SpecError) as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 500
        else:
            assert manifest.dialect in DIALECTS
            assert [item.ordinal for item in items] == list(range(len(items)))


@pytest.mark.parametrize("dialect", LINE_DIALECTS)
def test_dialect_of_lines_is_found_by_their_fields(dialect: str, tmp_path: Path) -> None:
    line = json.dumps(LINES[dialect]).encode()
    prompt = PROMPT if dialect == "ground-truth" else None
    for data in (line, b"\xef\xbb\xbf\n {\n\n[1]\n" + line):
        manifest = reader(tmp_path, data, prompt=prompt)
        assert (manifest.dialect, manifest.is_seekable) == (dialect, True)
        assert isinstance(list(manifest.items())[-1], Record)


@pytest.mark.parametrize(
    ("data", "dialect"),
    [
        (b'[{"prefix": "s3://b/"}, "a.png"]', "sagemaker-manifest"),
        (b'\n[\n {\n  "prefix": "s3://b/"\n },\n "a.png"\n]', "sagemaker-manifest"),
        (b'image_uri,more\na.png,"x"\n', "csv"),
        (b'\xef\xbb\xbf"image","id"\r\na.png,5\r\n', "csv"),
    ],
)
def test_dialect_of_other_files_is_found_by_their_beginning(
    data: bytes, dialect: str, tmp_path: Path
) -> None:
    manifest = reader(tmp_path, data, prompt=PROMPT)
    assert manifest.dialect == dialect
    [item] = manifest.items()
    assert isinstance(item, Record), item


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b'{"foo": 1, "bar": 2}', "an object with the fields 'foo', 'bar'"),
        (b"{}", "an object without fields"),
        (b"hello, world\nx,y\n", "'hello, world'"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 5000, "PNG"),
        (b"[1, 2]", "'[1, 2]'"),
        (b'{"id": "a"}\n' * 500, "an object with the fields 'id'"),
    ],
)
def test_unknown_dialect_is_refused_with_what_was_seen_and_what_is_known(
    data: bytes, shown: str, tmp_path: Path
) -> None:
    with pytest.raises(ManifestError) as caught:
        reader(tmp_path, data)
    message = str(caught.value)
    assert shown in message
    assert "native, openai, anthropic, bedrock, gemini, ground-truth, sagemaker-manifest" in message
    assert len(message) < 400


@pytest.mark.parametrize("dialect", LINE_DIALECTS)
@pytest.mark.parametrize("other", LINE_DIALECTS)
def test_line_of_another_dialect_is_refused_by_name(
    dialect: str, other: str, tmp_path: Path
) -> None:
    if dialect == other:
        return
    assert f"a line of dialect {other!r} in a manifest of dialect {dialect!r}" in reason(
        tmp_path, LINES[other], dialect
    )


def test_dialect_can_be_forced_where_nothing_tells_it(tmp_path: Path) -> None:
    assert "'id' must be" in reason(tmp_path, {"x": 1}, "native")
    assert "'body' must be an object" in reason(tmp_path, {"custom_id": "a"}, "openai")
    with pytest.raises(SpecError, match="dialect must be auto, native, .* got 'yaml'"):
        reader(tmp_path, b"", "yaml")


def test_prompt_of_the_job_is_wanted_where_records_have_none_and_nowhere_else(
    tmp_path: Path,
) -> None:
    for dialect in ("ground-truth", "sagemaker-manifest", "prefix"):
        with pytest.raises(SpecError, match=f"{dialect!r} has no prompts; give the job one"):
            reader(tmp_path, b"", dialect, prompt=None)
    for dialect in ("native", "openai", "anthropic", "bedrock", "gemini"):
        with pytest.raises(SpecError, match="have prompts of their own; leave out the job's"):
            reader(tmp_path, b"", dialect, prompt=PROMPT)


def test_digest_is_of_the_stored_bytes_once_all_were_read(tmp_path: Path) -> None:
    contents = [json.dumps(LINES["native"] | {"id": str(n)}).encode() for n in range(3)]
    plain = b"\n".join(contents)
    for stored in (plain, gzip.compress(plain)):
        manifest = reader(tmp_path, stored)
        reading = manifest.items()
        assert reading.sha256 is None
        positions = [reading.position for _ in reading]
        assert (reading.sha256, reading.num_bytes) == (sha256(stored).hexdigest(), len(stored))
        later = manifest.items(positions[0])
        assert len(list(later)) == 2
        assert later.sha256 is None


def test_reading_from_a_position_reads_only_what_follows(store: Store) -> None:
    contents = [json.dumps(LINES["native"] | {"id": str(n)}).encode() for n in range(3)]
    store.write(KEY, b"\n".join(contents))
    manifest = ManifestReader(store, KEY, etag=store.stat(KEY).etag)
    found = read_from(manifest)
    for index, (_, position) in enumerate(found):
        reading = manifest.items(position)
        assert [item.record_id for item in reading] == [str(n) for n in range(index + 1, 3)]
        assert reading.num_bytes == sum(map(len, contents[index + 1 :])) + max(0, 1 - index)


def test_raw_line_of_the_last_item_is_at_hand(tmp_path: Path) -> None:
    contents = [json.dumps(LINES["bedrock"]).encode(), b"{"]
    reading = reader(tmp_path, b"\n\n".join(contents)).items()
    assert [reading.raw for _ in reading] == contents


def test_manifest_that_changes_between_two_passes_ends_the_second(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.write(KEY, json.dumps(LINES["native"]).encode())
    manifest = ManifestReader(store, KEY, etag=manifest_etag(store, KEY))
    assert len(list(manifest.items())) == 1
    store.write(KEY, b"another")
    with pytest.raises(ManifestError, match="was changed while the job ran"):
        list(manifest.items())
    store.delete(KEY)
    with pytest.raises(ManifestError, match="does not exist"):
        list(manifest.items())
    with pytest.raises(ManifestError, match="does not exist"):
        manifest_etag(store, KEY)


def test_same_line_twice_is_two_records(tmp_path: Path) -> None:
    line = json.dumps(LINES["openai"]).encode()
    assert [item.ordinal for item in read(tmp_path, line + b"\n" + line)] == [0, 1]


def test_position_behind_a_line_that_is_too_long_is_where_the_next_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = json.dumps(LINES["native"]).encode()
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", len(line))
    data = b"\n".join([line, b"x" * 10 * len(line), line, line])
    for chunk_bytes in (7, 1 << 20):
        manifest = reader(tmp_path, data, chunk_bytes=chunk_bytes)
        found = read_from(manifest)
        assert [type(item) for item, _ in found] == [Record, BadLine, Record, Record]
        assert found[1][1].byte == 11 * len(line) + 2
        for index, (_, position) in enumerate(found):
            assert read_from(manifest, position) == found[index + 1 :]


def test_position_far_within_a_packed_manifest_is_found(tmp_path: Path) -> None:
    line = json.dumps(LINES["native"] | {"metadata": "x" * 1000}).encode()
    manifest = reader(tmp_path, gzip.compress(b"\n".join([line] * 4000), 1))
    found = read_from(manifest)
    for index in (10, 2000, 3998):
        assert read_from(manifest, found[index][1]) == found[index + 1 :]
