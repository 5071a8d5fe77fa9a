"""CSV and Parquet: a row is a record, its further columns are metadata."""

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.job.dialects.manifests import PROMPT, read, read_from, reader, user_message
from vlmflow.job.dialects import BadLine, lines
from vlmflow.job.dialects.reading import Position
from vlmflow.job.errors import ManifestError
from vlmflow.job.record import Record


def parquet(folder: Path, table: dict[str, Any] | pa.Table, **options: Any) -> bytes:
    if isinstance(table, dict):
        table = pa.table(table)
    pq.write_table(table, folder / "written", **options)
    return (folder / "written").read_bytes()


def test_row_of_csv_is_a_record(tmp_path: Path) -> None:
    data = (
        b'id,prompt,images,expected,split,"a ""b"""\r\n'
        b'r1,"What, ""exactly""?\r\nSay.","[""a.png"", ""b.png""]",a cat,test,\r\n'
        b"\r\n"
        b"r2,Describe it.,a.png,,,1\r\n"
    )
    first, second = read(tmp_path, data)
    text = 'What, "exactly"?\r\nSay.'
    assert first == Record(
        *(0, 2, "r1", [user_message(0, 1, text)], ("a.png", "b.png"), {}),
        {"expected": "a cat", "metadata": {"split": "test", 'a "b"': ""}},
    )
    assert second == Record(
        *(1, 5, "r2", [user_message(0, PROMPT)], ("a.png",), {}),
        {"metadata": {"split": "", 'a "b"': "1"}},
    )


def test_row_of_csv_without_an_id_is_named_by_its_number(tmp_path: Path) -> None:
    data = b"image_uri\na.png\n\n[b].png\n"
    items = read(tmp_path, data, prompt=PROMPT)
    assert [(i.record_id, i.line) for i in items] == [("row-1", 2), ("row-2", 4)]
    assert [i.image_uris for i in items if isinstance(i, Record)] == [("a.png",), ("[b].png",)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"a,x", "2 fields, the header has 3"),
        (b"a,x,y,z", "4 fields, the header has 3"),
        (b",x,a.png", "'id' must be"),
        (b'a,"x" y,a.png', "not CSV: quotes do not match"),
        (b'a,"x,a.png', "not CSV: quotes do not match"),
        (b"a,\xff,a.png", "not UTF-8"),
        (b"a,x,[1]", "'images' must be a URI or a list"),
        (b'a,x,"["', "'images' must be a URI or a list"),
        (b"a\rb,x,a.png", "a line ends in CR alone"),
    ],
)
def test_row_that_is_no_record_leaves_its_neighbours_alone(
    row: bytes, reason: str, tmp_path: Path
) -> None:
    items = read(tmp_path, b"id,prompt,images\nb,x,\n" + row + b"\n")
    assert [item.ordinal for item in items] == [0, 1]
    assert isinstance(items[0], Record)
    assert isinstance(items[1], BadLine)
    assert items[1].line == 3
    assert reason in items[1].failure.message
    if b'"x,' not in row:  # an open quote swallows what follows
        assert isinstance(read(tmp_path, b"id,prompt,images\n" + row + b"\nb,x,\n")[1], Record)


@pytest.mark.parametrize(
    ("header", "prompt", "reason"),
    [
        (b"id,image", None, "there is no column 'prompt'"),
        (b"id,prompt", PROMPT, "leave out one of them"),
        (b"id,prompt,id", None, "2 columns are named 'id'"),
        (b"id,prompt,", None, "a column has no name"),
        (b"image,prompt,images", None, "columns 'image' and 'images' are both images"),
        (b"id,prompt,messages", None, "column 'messages' is not for tables"),
        (b"id,prompt,generation", None, "column 'generation' is not for tables"),
    ],
)
def test_columns_that_make_no_manifest_are_refused(
    header: bytes, prompt: str | None, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match=reason):
        reader(tmp_path, header + b"\n", prompt=prompt)
    table = {}
    for name in header.decode().split(","):
        table.setdefault(name, ["x"])
    if len(table) == header.count(b",") + 1:
        with pytest.raises(ManifestError, match=reason):
            list(reader(tmp_path, parquet(tmp_path, table), prompt=prompt).items())


@pytest.mark.parametrize("header", [b'"id', b"\xff"])
def test_header_that_cannot_be_read_is_refused(header: bytes, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="its header is not"):
        reader(tmp_path, header, "csv", prompt=PROMPT)


def test_quote_that_is_never_closed_is_not_gathered_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    data = b'id,prompt\na,"x\n' + b"y,y\n" * 300
    first, *others = read(tmp_path, data)
    assert isinstance(first, BadLine)
    assert "longer than 1,000 bytes" in first.failure.message
    assert len(others) == 50  # what is behind the line that was too much
    assert [item.ordinal for item in others] == list(range(1, len(others) + 1))


def test_row_of_parquet_is_a_record(tmp_path: Path) -> None:
    table = {
        "id": ["r1", "r2"],
        "prompt": ["x", PROMPT],
        "images": [["a.png", "b.png"], []],
        "expected": ["a cat", None],
        "box": [{"x": 1, "y": [0.5, float("nan")]}, None],
        "when": [datetime.datetime(2026, 1, 2), None],
        "price": [decimal.Decimal("1.50"), None],
        "raw": [b"abc", None],
    }
    first, second = read(tmp_path, parquet(tmp_path, table))
    assert first == Record(
        *(0, 1, "r1", [user_message(0, 1, "x")], ("a.png", "b.png"), {}),
        {
            "expected": "a cat",
            "metadata": {
                "box": {"x": 1, "y": [0.5, None]},
                "when": "2026-01-02T00:00:00",
                "price": "1.50",
                "raw": "YWJj",
            },
        },
    )
    assert isinstance(second, Record)
    assert (second.record_id, second.image_uris) == ("r2", ())
    json.dumps(first.passed_through, allow_nan=False)


def test_parquet_is_read_from_any_row_of_any_row_group(tmp_path: Path) -> None:
    table = {"id": list(range(5000)), "prompt": [f"prompt {n}" for n in range(5000)]}
    manifest = reader(tmp_path, parquet(tmp_path, table, row_group_size=1500))
    assert not manifest.is_seekable
    found = read_from(manifest)
    assert [item.record_id for item, _ in found] == [str(n) for n in range(5000)]
    for start in (1, 1023, 1024, 1499, 1500, 4999, 5000):
        assert read_from(manifest, Position(start, start)) == found[start:]
    reading = manifest.items()
    assert len(list(reading)) == 5000
    assert reading.num_bytes == (tmp_path / "written").stat().st_size
    assert reading.sha256 is not None


def test_row_of_parquet_that_is_no_record_is_refused_with_the_reason(tmp_path: Path) -> None:
    broken = pa.array([b"\xff", b"ok"], pa.binary()).view(pa.string())
    table = pa.table({"id": ["", "b"], "prompt": broken, "image": ["a.png", "a.png"]})
    first, second = read(tmp_path, parquet(tmp_path, table))
    assert isinstance(first, BadLine)
    assert first.failure.message.startswith("row 1: a value cannot be read")
    assert isinstance(second, Record)
    table = {"prompt": ["x", None], "images": [["a", None], ["a"]]}
    reasons = [
        item.failure.message
        for item in read(tmp_path, parquet(tmp_path, table))
        if isinstance(item, BadLine)
    ]
    assert "row 1: 'images' must be a URI or a list of URIs" in reasons
    assert "row 2: 'prompt' must be a string" in reasons


def test_images_within_parquet_are_refused(tmp_path: Path) -> None:
    table = {"prompt": ["x"], "image": [{"bytes": b"abc", "path": "a.png"}]}
    with pytest.raises(ManifestError, match=r"column 'image' is struct.*named by URIs"):
        read(tmp_path, parquet(tmp_path, table))


@pytest.mark.parametrize("cut", [4, 5, 30, 200, -1, -8, -20])
def test_broken_parquet_is_refused(cut: int, tmp_path: Path) -> None:
    whole = parquet(tmp_path, {"prompt": ["x"] * 50, "id": [str(n) for n in range(50)]})
    for data in (whole[:cut], whole[:cut] + b"\x00" * 8, b"PAR1" + bytes(range(200)) + b"PAR1"):
        manifest = reader(tmp_path, data)
        with pytest.raises(ManifestError, match="is no sound Parquet file"):
            list(manifest.items())


def test_packed_parquet_is_refused(tmp_path: Path) -> None:
    packed = pa.compress(parquet(tmp_path, {"prompt": ["x"]}), codec="gzip", asbytes=True)
    with pytest.raises(ManifestError, match="is Parquet within gzip; unpack it"):
        reader(tmp_path, packed)
