"""Safetensors files, read by our own hand: what safetensors writes, and what nobody should."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlmflow_engine.errors import ModelError
from vlmflow_engine.models import tensor_file
from vlmflow_engine.models.tensor_file import DTYPES, SafetensorsFile


def write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        SafetensorsFile(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot be read as safetensors: ") and "\n" not in message
    return message


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_comes_as_safetensors_wrote_it(dtype, tmp_path):
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    save_file({"x": tensor, "empty": tensor[:0].clone()}, tmp_path / "f", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "f")
    target = torch.empty(3, 4, dtype=dtype)
    file.read("x", [range(3)], target)
    assert torch.equal(target.view(torch.uint8), tensor.view(torch.uint8))
    file.read("empty", [range(0)], torch.empty(0, 4, dtype=dtype))
    assert file.tensors["empty"].shape == (0, 4)


def test_runs_of_rows_follow_one_another_in_the_target(tmp_path):
    tensor = torch.randn(7, 3, 2)
    save_file({"first": torch.zeros(5), "x": tensor}, tmp_path / "f")
    target = torch.empty(4, 3, 2, dtype=torch.float64)
    SafetensorsFile(tmp_path / "f").read("x", [range(5, 7), range(0), range(1, 3)], target)
    assert torch.equal(target, tensor[[5, 6, 1, 2]].double())


def test_a_scalar_is_one_row(tmp_path):
    save_file({"x": torch.tensor(2.5)}, tmp_path / "f")
    target = torch.empty((), dtype=torch.bfloat16)
    SafetensorsFile(tmp_path / "f").read("x", [range(1)], target)
    assert target.item() == 2.5


def test_what_is_converted_in_slices_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "_STAGING_BYTES", 64)
    monkeypatch.setattr(tensor_file, "_MAX_READ_BYTES", 40)
    tensor = torch.randn(101)
    save_file({"x": tensor}, tmp_path / "f")
    for dtype in (torch.float32, torch.bfloat16):
        target = torch.empty(101, dtype=dtype)
        SafetensorsFile(tmp_path / "f").read("x", [range(101)], target)
        assert torch.equal(target, tensor.to(dtype))


def test_a_file_cut_while_it_is_read_is_told(tmp_path):
    save_file({"x": torch.zeros(100)}, tmp_path / "f")
    file = SafetensorsFile(tmp_path / "f")
    os.truncate(tmp_path / "f", 200)
    with pytest.raises(ModelError, match="it has become shorter while it was read"):
        file.read("x", [range(100)], torch.empty(100))


def test_truncated_data_is_told_with_both_sizes(tmp_path):
    path = tmp_path / "f"
    save_file({"x": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    assert "it has 3,999 bytes of data where its header tells of 4,000" in refusal(path)


@pytest.mark.parametrize(
    "entry",
    [
        {},
        [],
        {"dtype": "F32", "shape": [2], "data_offsets": [0]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
        {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]},
    ],
    ids=str,
)
def test_a_header_that_tells_of_what_cannot_be_is_refused(entry, tmp_path):
    refusal(write_raw(tmp_path / "f", {"x": entry}, bytes(8)))


@pytest.mark.parametrize("raw", [b"", b"\x05", bytes(8), b"\xff" * 8, b"\xff" * 7 + b"\x00", b"[]"])
def test_what_is_no_header_is_refused(raw, tmp_path):
    (tmp_path / "f").write_bytes(raw)
    refusal(tmp_path / "f")


def test_a_file_is_given_back_when_it_is_closed_or_forgotten(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "f")
    before = len(os.listdir("/proc/self/fd"))
    closed, forgotten = SafetensorsFile(tmp_path / "f"), SafetensorsFile(tmp_path / "f")
    closed.close()
    closed.close()
    del forgotten
    assert len(os.listdir("/proc/self/fd")) == before
