"""Results are found by whatever a user calls them, and say the same."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.job.jobs import records
from tools.loopback_s3 import loopback_s3
from vlmflow.evaluation.answer import Answer
from vlmflow.evaluation.results import ResultsOpener
from vlmflow.job.dialects.parquet_output import ResultsTable
from vlmflow.job.errors import SpecError
from vlmflow.job.store import StoreOpener

LINES = [
    *records(3),
    {"id": "bad", "prompt": "x", "images": ["missing.png"], "expected": "y", "metadata": {"k": 1}},
    "no JSON",
    {"id": "r1", "prompt": "again"},
    {"id": "last", "prompt": "z", "expected": ["4", "four"]},
]
ANSWERS = {"r0": "0", "r1": "one", "r2": "2", "last": "four"}


def read(name: str | Path, **options: str) -> list[Answer]:
    with ResultsOpener(StoreOpener(), **options) as opener:
        return list(opener.open(str(name)))


@pytest.fixture
def output(finished) -> Path:
    return finished(LINES, ANSWERS)


def write_table(output: Path, path: Path) -> Path:
    """The job's own Parquet dialect of its results."""
    with ResultsTable(path) as table:
        for kind in ("results", "failures"):
            for line in (output / kind / "00000.jsonl").read_text().splitlines():
                table.add(json.loads(line))
    return path


def test_output_has_answers_and_failures_in_the_manifests_order_without_skipped_ones(output):
    answers = read(output)
    assert [a.record_id for a in answers] == ["r0", "r1", "r2", "bad", None, "last"]
    assert [a.ordinal for a in answers] == [0, 1, 2, 3, 4, 6]
    assert [a.text for a in answers] == ["0", "one", "2", None, None, "four"]
    assert [a.error_class for a in answers][3:5] == ["image_not_found", "invalid_line"]
    assert answers[3].field("metadata.k") == 1
    assert answers[3].images[0].uri == "missing.png"
    assert answers[5].fields["expected"] == ["4", "four"]


def test_results_folder_stands_for_its_output(output):
    assert read(f"{output}/results/") == read(f"{output}/results") == read(output)


def test_one_file_of_results_is_that_file(output):
    assert [a.record_id for a in read(output / "results/00000.jsonl")] == ["r0", "r1", "r2", "last"]


def test_parquet_table_says_the_same(output, tmp_path):
    table = sorted(read(write_table(output, tmp_path / "t.parquet")), key=lambda a: a.ordinal)
    assert table == read(output)


def test_table_with_other_columns_is_read_by_what_it_has(tmp_path):
    rows = [
        {
            "id": "a", "status": "succeeded", "text": "4", "expected": "4",
            "metadata": '{"split": "test"}', "image_uris": ["s3://b/i.png"],
            "image_sha256": ["ab"], "seconds": 1.0,
        },
        {
            "id": "b", "status": "failed", "text": "", "expected": '["x", "y"]', "metadata": None,
            "image_uris": [], "image_sha256": [], "seconds": None,
        },
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "results.parquet")
    first, second = read(tmp_path / "results.parquet")
    assert (first.text, first.fields["expected"], first.ordinal) == ("4", "4", 0)
    assert first.field("metadata.split") == first.field("split") == "test"
    assert first.images[0].sha256 == "ab"
    assert (second.text, second.error_class, second.ordinal) == (None, "unknown", 1)
    assert second.fields["expected"] == ["x", "y"]


def test_pointer_leads_to_its_table_unless_that_was_changed(output, tmp_path):
    table = write_table(output, tmp_path / "t.parquet")
    digest = hashlib.sha256(table.read_bytes()).hexdigest()
    pointer = tmp_path / "results_pointer.json"
    pointer.write_text(json.dumps({"uri": str(table), "sha256": digest}))
    assert len(read(pointer)) == 6
    pointer.write_text(json.dumps({"uri": str(table), "sha256": "0" * 64}))
    with pytest.raises(SpecError, match="changed since the run pointed to it"):
        read(pointer)
    for content, reason in (("nothing", "it is not JSON"), ("{}", "names no 'uri'")):
        pointer.write_text(content)
        with pytest.raises(SpecError, match=reason):
            read(pointer)


def test_output_on_s3_is_read_as_one_in_a_folder(output, monkeypatch):
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with loopback_s3() as endpoint:
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="bucket")
        for file in output.rglob("*.json*"):
            key = f"out/m/{file.relative_to(output)}"
            client.put_object(Bucket="bucket", Key=key, Body=file.read_bytes())
        client.close()
        with ResultsOpener(StoreOpener(endpoint)) as opener:
            results = opener.open("s3://bucket/out/m")
            assert list(results) == read(output)
            assert results.manifest_digest is not None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere", "holds no results"),
        ("nowhere.parquet", "does not exist"),
        ("ftp://host/x", "scheme 'ftp'"),
    ],
)
def test_what_is_no_result_is_one_sentence(tmp_path, monkeypatch, name, reason):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=reason):
        read(name)


@pytest.mark.parametrize("content", ["{}", "[1]", "nothing"])
def test_line_that_is_no_result_is_named(tmp_path, content):
    (tmp_path / "x.jsonl").write_text(f"{content}\n")
    with pytest.raises(SpecError, match="line 1 is no result of vlmflow"):
        read(tmp_path / "x.jsonl")


def test_file_that_is_no_parquet_or_no_table_of_results_is_told(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"nothing")
    with pytest.raises(SpecError, match="cannot be read as Parquet"):
        read(tmp_path / "x.parquet")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "y.parquet")
    with pytest.raises(SpecError, match="no column 'text'"):
        read(tmp_path / "y.parquet")
