"""The tensors of one safetensors file, read straight into the caller's memory.

A file is read by `pread`, not through a memory map: the pages of a map count as this process's
memory, and a map of a file that shrinks meanwhile ends the process.

    8 bytes   length of the header, little-endian
    header    JSON: name -> {dtype, shape, data_offsets: [start, end)}, counted from its end
    data      row-major, little-endian
"""

import json
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vlmflow_engine.errors import ModelError

_MAX_HEADER_BYTES = 100_000_000  # as the format says
# Of a tensor that is converted, or goes to a device, at a time. With more of it the allocator keeps
# what is freed: a peak of 1.5 times the weights with 16 MiB (benchmarks/loading.py).
_STAGING_BYTES = 2 << 20
_MAX_READ_BYTES = 1 << 30  # Linux reads no more than 2 GiB in a call

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What a file says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Of one index of the first dimension."""
        return prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class TensorFile(Protocol):
    """One file of a checkpoint, of whatever format."""

    path: Path
    tensors: dict[str, StoredTensor]

    def read(self, name: str, rows: Sequence[range], target: Tensor) -> None:
        """Write the given runs of rows, one after another, into `target`, in its own dtype.

        rows    runs of indices of the first dimension; a scalar has one row
        target  contiguous, on any device, with as many elements as the rows have
        Raises ModelError when the file cannot be read.
        """

    def close(self) -> None:
        """Give the file back; it is not read any more."""


class SafetensorsFile:
    """A safetensors file, open until `close` or until nobody holds this object."""

    def __init__(self, path: Path) -> None:
        """Read the header. Raises ModelError if the file is not whole or not of this format."""
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._unreadable(error.strerror or str(error)) from error
        self._close = weakref.finalize(self, os.close, self._fd)
        if hasattr(os, "posix_fadvise"):  # Linux: read farther ahead, 1.2 GB/s instead of 0.7
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self.tensors: dict[str, StoredTensor] = {}
        self._starts: dict[str, int] = {}
        try:
            self._read_header()
        except OSError as error:
            raise self._unreadable(error.strerror or str(error)) from error

    def read(self, name: str, rows: Sequence[range], target: Tensor) -> None:
        stored, start = self.tensors[name], self._starts[name]
        flat, position = target.view(-1), 0
        is_direct = target.dtype == stored.dtype and target.device.type == "cpu"
        for run in rows:
            offset, num_bytes = start + run.start * stored.row_bytes, len(run) * stored.row_bytes
            part = flat[position : position + num_bytes // stored.dtype.itemsize]
            position += len(part)
            if is_direct:
                self._fill(part, offset)
            else:
                self._convert(part, offset, stored.dtype)

    def close(self) -> None:
        self._close()

    def _convert(self, target: Tensor, offset: int, dtype: torch.dtype) -> None:
        """Read in slices, so that what is not yet converted takes little room."""
        size = _STAGING_BYTES // dtype.itemsize
        staging = torch.empty(min(size, len(target)), dtype=dtype)
        for part in torch.split(target, size):
            self._fill(staging[: len(part)], offset)
            part.copy_(staging[: len(part)])
            offset += len(part) * dtype.itemsize

    def _fill(self, target: Tensor, offset: int) -> None:
        """Read bytes into a tensor of one dimension."""
        left = target.view(torch.uint8).numpy().data
        while len(left):
            try:
                count = os.preadv(self._fd, [left[:_MAX_READ_BYTES]], offset)
            except OSError as error:
                raise self._unreadable(error.strerror or str(error)) from error
            if count == 0:
                raise self._unreadable("it has become shorter while it was read")
            left, offset = left[count:], offset + count

    def _read_header(self) -> None:
        file_bytes = os.fstat(self._fd).st_size
        length = int.from_bytes(os.pread(self._fd, 8, 0), "little")
        if file_bytes < 8 or length > min(file_bytes - 8, _MAX_HEADER_BYTES):
            raise self._unreadable("it ends within its header, or is of another format")
        raw = b""
        while len(raw) < length and (chunk := os.pread(self._fd, length - len(raw), 8 + len(raw))):
            raw += chunk
        try:
            header = json.loads(raw)
            header.pop("__metadata__", None)
            entries = {name: _parse(entry) for name, entry in header.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._unreadable("its header is not one of this format") from error
        data_bytes, end = file_bytes - 8 - length, 0
        for name, (dtype_name, shape, start, stop) in entries.items():
            if dtype_name not in DTYPES:
                raise self._unreadable(f"tensor {name!r} has the unknown dtype {dtype_name!r}")
            stored = StoredTensor(DTYPES[dtype_name], shape)
            if stop - start != stored.num_bytes:
                raise self._unreadable(f"tensor {name!r} has {stop - start} bytes for {shape}")
            self.tensors[name] = stored
            self._starts[name] = 8 + length + start
            end = max(end, stop)
        if end != data_bytes:
            raise self._unreadable(
                f"it has {data_bytes:,} bytes of data where its header tells of {end:,}; "
                "copy or download it again"
            )

    def _unreadable(self, reason: str) -> ModelError:
        return ModelError(f"{self.path}: cannot be read as safetensors: {reason}")


def _parse(entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Take a header's entry apart. Raises ValueError, TypeError or KeyError."""
    start, stop = entry["data_offsets"]
    numbers = [start, stop, *entry["shape"]]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(numbers)
    return str(entry["dtype"]), tuple(entry["shape"]), start, stop
