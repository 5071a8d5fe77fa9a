"""Lists of images, asked the job's one prompt: SageMaker's ManifestFile and a bare prefix."""

import json
import os
from pathlib import Path

import pytest

from tests.job.dialects.manifests import PROMPT, read, read_from, reader, user_message
from vlmflow.job.dialects import (
    BadLine,
    ManifestReader,
    Position,
    locate_manifest,
    manifest_etag,
)
from vlmflow.job.errors import ManifestError, SpecError
from vlmflow.job.record import Record
from vlmflow.job.store import Store, StoreOpener
from vlmflow.job.store.folder import FolderStore


def test_keys_of_a_manifest_file_are_records_below_its_prefix(tmp_path: Path) -> None:
    data = json.dumps([{"prefix": "s3://bucket/in/"}, "a.png", 5, "b/ü.png"]).encode()
    first, second, third = read(tmp_path, data, prompt=PROMPT)
    assert first == Record(
        0, 1, "a.png", [user_message(0, PROMPT)], ("s3://bucket/in/a.png",), {}, {}
    )
    assert isinstance(second, BadLine)
    assert second.failure.message == "key 2: must be a string that is not empty"
    assert isinstance(third, Record)
    assert (third.ordinal, third.image_uris) == (2, ("s3://bucket/in/b/ü.png",))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"it does not begin with '\['"),
        (b"[]", "its first element names no 'prefix'"),
        (b'["a.png"]', "its first element names no 'prefix'"),
        (b'[{"prefix": ""}]', "its first element names no 'prefix'"),
        (b'[{"prefix": "s3://b/"}, "a.png"', r"no ',' or '\]' behind element 2"),
        (b'[{"prefix": "s3://b/"} "a.png"]', r"no ',' or '\]' behind element 1"),
        (b'[{"prefix": "s3://b/"}, "a.png', "its element 2 is not valid JSON"),
        (b'[{"prefix": "s3://b/"},]', "its element 2 is not valid JSON"),
        (b'[{"prefix": "s3://b/"}, NaN]', "its element 2 is not valid JSON"),
        (b'[{"prefix": "s3://b/"}] x', r"something follows its '\]'"),
        (b'[{"prefix": "s3://b/"}, "\xff"]', "it is not UTF-8"),
        (b'[{"prefix": "s3://b/"}, "' + b"x" * (3 << 20) + b'"]', "its element 2 is"),
        (b'[{"prefix": "s3://b/"}, ' + b"[" * 100_000, "its element 2 is not valid JSON"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [1 << 20, 1 << 24])
def test_array_that_is_no_manifest_is_refused(
    data: bytes, reason: str, chunk_bytes: int, tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match=reason):
        list(reader(tmp_path, data, "sagemaker-manifest", chunk_bytes).items())


def test_images_below_a_prefix_are_records(root: str, store: Store, opener: StoreOpener) -> None:
    for key in ("in/b.JPG", "in/a.png", "in/sub/c.webp", "in/readme.txt", "other/d.png"):
        store.write(key, b"x")
    folder, key = locate_manifest(opener, f"{root}/in/")
    manifest = ManifestReader(folder, key, etag=manifest_etag(folder, key), prompt=PROMPT)
    assert manifest.dialect == "prefix"
    found = read_from(manifest)
    records = [item for item, _ in found if isinstance(item, Record)]
    assert [record.record_id for record in records] == ["a.png", "b.JPG", "sub/c.webp"]
    assert [record.ordinal for record in records] == [0, 1, 2]
    for record in records:
        [uri] = record.image_uris
        where, name = opener.locate(uri)
        assert where.read(name) == b"x"
    assert read_from(manifest, Position(1, 1)) == found[1:]


def test_prefix_in_the_middle_of_a_name_keeps_the_name_whole(store: Store) -> None:
    for key in ("in/2024-a.png", "in/2025-b.png"):
        store.write(key, b"x")
    etag = manifest_etag(store, "in/2025-", "prefix")
    manifest = ManifestReader(store, "in/2025-", etag=etag, dialect="prefix", prompt=PROMPT)
    assert [item.record_id for item in manifest.items()] == ["2025-b.png"]


def test_listing_that_changed_is_refused_and_a_copy_has_the_same_digest(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        store = FolderStore(tmp_path / name)
        store.write("a.png", b"x")
        manifest = ManifestReader(store, "", etag=manifest_etag(store, ""), prompt=PROMPT)
        reading = manifest.items()
        list(reading)
        digests.append(reading.sha256)
    assert digests[0] == digests[1] is not None
    etag = manifest_etag(store, "")
    store.write("a.png", b"y")
    changed = ManifestReader(store, "", etag=etag, prompt=PROMPT)
    with pytest.raises(ManifestError, match="was changed while the job ran"):
        list(changed.items())
    store.write("b.png", b"x")
    other = ManifestReader(store, "", etag=manifest_etag(store, ""), prompt=PROMPT).items()
    assert len(list(other)) == 2
    assert other.sha256 != digests[0]


def test_prefix_without_images_has_no_items(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "nowhere")
    manifest = ManifestReader(store, "", etag=manifest_etag(store, ""), prompt=PROMPT)
    assert list(manifest.items()) == []


def test_file_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    store = FolderStore(tmp_path)
    manifest = ManifestReader(store, "", etag=manifest_etag(store, ""), prompt=PROMPT)
    [item] = manifest.items()
    assert isinstance(item, BadLine)
    assert item.failure.message == "image 1: the name is not UTF-8"


def test_manifest_is_a_prefix_only_if_it_ends_like_one(tmp_path: Path) -> None:
    opener = StoreOpener()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    for uri, dialect in ((f"{tmp_path}/in/", "auto"), (f"{tmp_path}/in", "prefix")):
        store, key = locate_manifest(opener, uri, dialect)
        assert (store.uri, key) == (f"{tmp_path}/in", "")
    store, key = locate_manifest(opener, f"{tmp_path}/in")
    assert key == "in"
    with pytest.raises(ManifestError, match="is no file"):
        manifest_etag(store, key)
    with pytest.raises(SpecError, match="has no prompts; give the job one"):
        ManifestReader(store, "", etag="x")
