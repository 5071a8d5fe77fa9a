"""A checkpoint's tensors under one naming, read by memory map from safetensors files."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from vlmflow_engine.errors import ModelError
from vlmflow_engine.layers.linear import Linear

Renames = Sequence[tuple[str, str]]  # (regular expression of a prefix, what stands for it)

# Buffers that old checkpoints carry and that are computed instead.
_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|\.position_ids)$")


class Checkpoint:
    """Hands each tensor out once, in the engine's dtype and on its device.

    Models take what they need by name and shape; what is missing, misshaped or left over is named
    in one sentence.
    """

    def __init__(
        self, folder: Path, renames: Renames, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.folder = folder
        self._dtype = dtype
        self._device = device
        self._files: dict[Path, Any] = {}
        self._places: dict[str, tuple[Path, str]] = {}  # our name -> (file, name in the file)
        for path in _safetensors_files(folder):
            for name in self._open(path).keys():  # noqa: SIM118 (not a dict)
                if not _BUFFERS.search(name):
                    self._place(rename(name, renames), path, name)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def take(self, name: str, *shape: int) -> Tensor:
        """Read a tensor of exactly that shape. Raises ModelError."""
        if name not in self._places:
            raise ModelError(
                f"{self.folder}: the checkpoint has no tensor for {name!r} (the engine's own "
                "name); is it complete, and of the family that its config.json names?"
            )
        path, stored_name = self._places.pop(name)
        tensor: Tensor = self._open(path).get_tensor(stored_name)
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"{path}: tensor {stored_name!r} has shape {list(tensor.shape)}, "
                f"but config.json asks for {list(shape)}"
            )
        # Always a copy: a view of the file would change, or end the process, when the file does.
        return tensor.to(device=self._device, dtype=self._dtype, copy=True)

    def linear(
        self, name: str, in_features: int, out_features: int, *, bias: bool = False
    ) -> Linear:
        """Read `name`.weight and, if there shall be one, `name`.bias."""
        return Linear(
            self.take(f"{name}.weight", out_features, in_features),
            self.take(f"{name}.bias", out_features) if bias else None,
            name,
        )

    def check_used(self, *ignored_prefixes: str) -> None:
        """Raise ModelError if a tensor was not taken: the model would not be what was trained."""
        left = [name for name in self._places if not name.startswith(ignored_prefixes)]
        if left:
            path, stored_name = self._places[left[0]]
            raise ModelError(
                f"{path}: {len(left)} tensors have no place in the model, "
                f"the first is {stored_name!r}; is config.json of this checkpoint?"
            )

    def _place(self, name: str, path: Path, stored_name: str) -> None:
        if name in self._places:
            raise ModelError(
                f"{path}: {stored_name!r} and {self._places[name][1]!r} are the same tensor; "
                "which one counts?"
            )
        self._places[name] = (path, stored_name)

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            try:
                self._files[path] = safe_open(path, framework="pt")
            except Exception as error:  # safetensors raises its own class and OSError
                raise ModelError(f"{path}: cannot be read as safetensors: {error}") from error
        return self._files[path]


def _safetensors_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    paths = [single]
    if index.is_file() and not single.is_file():  # transformers' order
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            paths = [folder / name for name in names]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index}: not an index of safetensors files: {error!r}") from error
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ModelError(
            f"{folder}: {missing[0]} is missing; weights are read from safetensors files only"
        )
    return paths


def rename(name: str, renames: Renames) -> str:
    """Give a stored tensor the engine's own name, by the first rule that fits."""
    for pattern, replacement in renames:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    return name
