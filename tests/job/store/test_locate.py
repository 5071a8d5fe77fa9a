"""URIs find their stores, and what is no URI of ours is refused by name."""

import subprocess
import sys
from pathlib import Path

import pytest

from vlmflow.job.errors import SpecError
from vlmflow.job.store import StoreOpener
from vlmflow.job.store.locate import join, scheme


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/key", "s3"),
        ("S3://bucket/key", "s3"),
        ("HTTPS://host/a", "https"),
        ("file:///a", "file"),
        ("data:image/png;base64,AAAA", "data"),
        ("DATA:,x", "data"),
        ("/a/b", ""),
        ("a:b/c", ""),
        ("C:/a", ""),
        ("", ""),
    ],
)
def test_scheme_is_what_stands_before_the_slashes(uri: str, expected: str) -> None:
    assert scheme(uri) == expected


@pytest.mark.parametrize(
    ("base", "name", "expected"),
    [
        ("s3://bucket/m.jsonl", "a.png", "s3://bucket/a.png"),
        ("s3://bucket/in/m.jsonl", "images/a b.png", "s3://bucket/in/images/a b.png"),
        ("s3://bucket/in/m.jsonl", "s3://other/a.png", "s3://other/a.png"),
        ("s3://bucket/in/m.jsonl", "/etc/passwd", "/etc/passwd"),
        ("/in/m.jsonl", "a.png", "/in/a.png"),
        ("/m.jsonl", "a.png", "/a.png"),
        ("in/m.jsonl", "../a.png", "in/../a.png"),
        ("m.jsonl", "a.png", "a.png"),
        ("in/m.jsonl", "/a.png", "/a.png"),
        ("in/m.jsonl", "file:///a.png", "file:///a.png"),
        ("file:///in/m.jsonl", "a.png", "file:///in/a.png"),
        ("in/m.jsonl", "data:,x", "data:,x"),
    ],
)
def test_relative_name_is_relative_to_the_manifests_folder(
    base: str, name: str, expected: str
) -> None:
    assert join(base, name) == expected


@pytest.mark.parametrize("name", ["a.png", "a b.png", "50%25.png", "a#1.png", "a?x=1.png"])
@pytest.mark.parametrize("kind", ["path", "file URI"])
def test_relative_name_is_a_files_name_whatever_the_manifests_uri(
    kind: str, name: str, tmp_path: Path
) -> None:
    manifest = tmp_path / "my manifest.jsonl"
    (tmp_path / name).write_bytes(b"image")
    base = str(manifest) if kind == "path" else manifest.as_uri()
    store, key = StoreOpener().locate(join(base, name))
    assert store.read(key) == b"image"


@pytest.mark.parametrize("name", ["m.jsonl", "a b.jsonl", "50%25.jsonl", "\u00fc#1.jsonl"])
@pytest.mark.parametrize("form", ["path", "relative path", "home", "file URI"])
def test_every_form_of_a_path_finds_the_file(
    form: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.write_bytes(b"there")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    uri = {"path": str(path), "relative path": name, "home": f"~/{name}", "file URI": path.as_uri()}
    store, key = StoreOpener().locate(uri[form])
    assert (store.read(key), key) == (b"there", name)


@pytest.mark.parametrize("key", ["key", "deep/er/key", "a b?x=1#y%41"])
def test_key_of_an_s3_uri_is_taken_letter_by_letter(
    key: str, opener: StoreOpener, bucket: str
) -> None:
    opener.open(f"s3://{bucket}").write(key, b"there")
    store, located = opener.locate(f"s3://{bucket}/{key}")
    assert (store.read(located), located) == (b"there", key)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("s3://", "names no bucket"),
        ("s3:///key", "names no bucket"),
        ("s3://bucket", "names a bucket"),
        ("s3://bucket/", "names a bucket"),
        ("gs://bucket/key", "scheme 'gs' is not supported"),
        ("https://host/key", "scheme 'https' is not supported"),
        ("data:,x", "scheme 'data' is not supported"),
        ("file://[/a.png", "file://"),
        ("~nobody-of-this-name/a", "~nobody-of-this-name"),
    ],
)
def test_uri_that_names_no_object_is_refused(uri: str, reason: str, aws_environment: None) -> None:
    with pytest.raises(SpecError, match=reason):
        StoreOpener().locate(uri)


def test_job_between_folders_loads_no_s3_client() -> None:
    code = "import sys; from vlmflow.job.store import StoreOpener; StoreOpener().open('/tmp')"
    code += "; sys.exit(int('boto3' in sys.modules or 'botocore' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
