"""The tensors of an old pytorch_model.bin: a pickle, of which nothing but tensors is taken."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.tensor_file import StoredTensor


class PickleFile:
    """A file that torch.save wrote, by memory map; its pages are given back by `close`."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError if it holds anything but tensors, or is not whole."""
        self.path = path
        self._content: dict[str, Tensor] = _load(path)
        self.tensors = {
            name: StoredTensor(tensor.dtype, tuple(tensor.shape))
            for name, tensor in self._content.items()
        }

    def read(self, name: str, rows: Sequence[range], target: Tensor) -> None:
        tensor = self._content[name]
        source = tensor if tensor.dim() else tensor.view(1)
        flat, position = target.view(-1), 0
        for run in rows:
            part = source[run.start : run.stop]
            flat[position : position + part.numel()].view(part.shape).copy_(part)
            position += part.numel()

    def close(self) -> None:
        self._content = {}


def _load(path: Path) -> dict[str, Tensor]:
    # What the unpickler says is never shown: its text is the file's, whoever wrote that.
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path}: a pickle with more in it than tensors, or none at all; it may be code and is "
            "not read; convert it to safetensors"
        ) from None
    except Exception as error:  # of many classes: RuntimeError, EOFError, OSError, zip errors
        reason = error.strerror if isinstance(error, OSError) else None
        raise ModelError(
            f"{path}: cannot be read as a file of torch.save"
            + (f": {reason}" if reason else "; it is not whole, or older than torch 1.6")
            + "; convert it to safetensors"
        ) from None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise ModelError(f"{path}: not a table of tensors; convert it to safetensors")
    return content
