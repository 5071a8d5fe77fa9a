"""A checkpoint's tensors under one naming, read from its files into the layout the engine uses."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from vlmflow_engine.errors import ModelError
from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.layers.linear_weight import LinearWeight, PlainFormat, WeightFormat
from vlmflow_engine.models.checkpoint_files import find_files
from vlmflow_engine.models.load_progress import LoadProgress
from vlmflow_engine.models.quantisation import check_tensors
from vlmflow_engine.models.slabs import Slabs
from vlmflow_engine.models.tensor_file import StoredTensor, TensorFile

Renames = Sequence[tuple[str, str]]  # (regular expression of a prefix, what stands for it)

# Buffers that old checkpoints carry and that are computed instead.
_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|\.position_ids)$")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies: rows of one that is stored, in the order in which they are wanted."""

    file: TensorFile
    stored_name: str
    stored: StoredTensor
    rows: tuple[range, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        if not self.stored.shape:
            return ()
        return (sum(map(len, self.rows)), *self.stored.shape[1:])

    @property
    def is_whole(self) -> bool:
        return not self.stored.shape or self.shape == self.stored.shape


class Checkpoint:
    """Hands each tensor out once, in the engine's dtype and on its device.

    Models take what they need by name and shape; what is missing, misshaped or left over is named
    in one sentence. What a family stores otherwise than it is used, it says before it takes:

        renames              prefixes of names, of every tensor
        split                several of our tensors stored as one, by rows
        take, then reshape   the same numbers in another shape: take("x", 1, 1, width).view(width)

    Layers that share their input are read into one tensor by `merged_linear`. What a matrix becomes
    is its format's business: `set_format`, before it is taken.
    """

    def __init__(
        self, folder: Path, renames: Renames, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.folder = folder
        self._slabs = Slabs(dtype, device)
        self._packed_slabs = Slabs(torch.uint8, device)
        self._format: WeightFormat = PlainFormat()
        self._read_buffer = torch.empty(0, dtype=dtype, device=device)
        self._places: dict[str, _Place] = {}  # by our name
        self._num_left: dict[Path, int] = {}  # tensors of a file that are not taken yet
        self._source = self._add(folder, renames)
        sizes = [place.stored.num_bytes for place in self._places.values()]
        self._progress = LoadProgress(folder, sum(sizes))

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def set_format(self, weight_format: WeightFormat) -> None:
        """From now on keep the matrices of linear layers in that format."""
        self._format = weight_format

    def add(self, folder: Path, renames: Renames) -> None:
        """Take in the tensors of another checkpoint, those that its renames speak of.

        For a model of which a part lies in a folder of its own. Raises ModelError.
        """
        self._add(folder, renames, only_renamed=True)

    def _add(self, folder: Path, renames: Renames, *, only_renamed: bool = False) -> Path:
        source, files = find_files(folder)
        for file in files:
            check_tensors(file.tensors, str(file.path))
            for name, stored in file.tensors.items():
                ours = rename(name, renames)
                if not _BUFFERS.search(name) and not (only_renamed and ours == name):
                    rows = (range(stored.shape[0] if stored.shape else 1),)
                    self._put(ours, _Place(file, name, stored, rows))
        return source

    def split(self, stored: str, parts: Mapping[str, int], *, num_groups: int = 1) -> None:
        """Declare that the rows of a stored tensor are several tensors of ours.

        stored      regular expression of the beginning of its name, as the renames left it; what
                    it does not match (".weight", ".bias") is kept, as in a rename
        parts       what stands for it in each part's name -> rows of the part in a group, in the
                    order in which they are stored
        num_groups  how often that order is repeated; a part is its rows of all groups

        q, k and v one after another, and the same for each KV head in turn:

            weights.split(
                r"(text\\.layers\\.\\d+\\.self_attn)\\.qkv_proj",
                {r"\\1.q_proj": q_size, r"\\1.k_proj": kv_size, r"\\1.v_proj": kv_size},
            )
            weights.split(
                r"(text\\.layers\\.\\d+)\\.attention\\.wqkv",
                {
                    r"\\1.self_attn.q_proj": q_heads // kv_heads * head_dim,
                    r"\\1.self_attn.k_proj": head_dim,
                    r"\\1.self_attn.v_proj": head_dim,
                },
                num_groups=kv_heads,
            )

        A part is then taken like any tensor, and its rows alone are read. A name that nothing
        matches is no error: some checkpoints of a family are stored in parts. Raises ModelError
        when a tensor has other rows than the parts together.
        """
        group = sum(parts.values())
        for name in [name for name in self._places if re.match(stored, name)]:
            place = self._places[name]
            if not place.stored.shape or place.shape[0] != num_groups * group:
                raise ModelError(
                    f"{place.file.path}: tensor {place.stored_name!r} has shape "
                    f"{list(place.shape)}, but config.json asks for {num_groups * group} rows"
                )
            self._pop(name)
            begin = 0
            for replacement, size in parts.items():
                starts = range(begin, num_groups * group, group)
                rows = tuple(range(start, start + size) for start in starts)
                part = re.sub(f"^(?:{stored})", replacement, name)
                self._put(part, replace(place, rows=rows))
                begin += size

    def take(self, name: str, *shape: int) -> Tensor:
        """Read a tensor of exactly that shape. Raises ModelError."""
        self._find(name, shape)
        target = self._slabs.empty(shape)
        self._read(name, target)
        return target

    def linear(
        self, name: str, in_features: int, out_features: int, *, bias: bool = False
    ) -> Linear:
        """Read `name`.weight and, if there shall be one, `name`.bias."""
        return self.merged_linear([name], in_features, [out_features], bias=bias)

    def merged_linear(
        self,
        names: Sequence[str],
        in_features: int,
        out_features: Sequence[int],
        *,
        bias: bool = False,
    ) -> Linear:
        """Read layers that share their input as one, each straight into its rows of it."""
        inputs = {"weight": (in_features,)} | ({"bias": ()} if bias else {})
        tensors = {}
        for kind, row in inputs.items():
            for name, rows in zip(names, out_features, strict=True):
                self._find(f"{name}.{kind}", (rows, *row))
            shape = (sum(out_features), *row)
            tensors[kind] = (
                self._target(shape, names[0]) if kind == "weight" else self._slabs.empty(shape)
            )
            parts = torch.split(tensors[kind], list(out_features))
            for name, part in zip(names, parts, strict=True):
                self._read(f"{name}.{kind}", part)
        layer = Linear(self.keep(tensors["weight"], names[0]), tensors.get("bias"))
        layer.parts = list(zip(names, out_features, strict=True))
        return layer

    def keep(self, weight: Tensor, name: str) -> LinearWeight:
        """Bring a matrix [out_features, in_features] that was taken into the format."""
        return self._format(weight, name, lambda num_bytes: self._packed_slabs.empty((num_bytes,)))

    def _target(self, shape: tuple[int, ...], name: str) -> Tensor:
        """Where a matrix is read to: where it stays, or a place that the next one takes too."""
        if not self._format.is_packed(name):
            return self._slabs.empty(shape)
        if self._read_buffer.numel() < prod(shape):
            self._read_buffer = self._read_buffer.new_empty(prod(shape))
        return self._read_buffer[: prod(shape)].view(shape)

    def check_used(self, *ignored_prefixes: str) -> None:
        """End the loading: raise ModelError if a tensor was not taken.

        The model would not be what was trained.
        """
        left = [name for name in self._places if not name.startswith(ignored_prefixes)]
        if left:
            place = self._places[left[0]]
            raise ModelError(
                f"{place.file.path}: {len(left)} tensors have no place in the model, "
                f"the first is {place.stored_name!r}; is config.json of this checkpoint?"
            )
        self._progress.finish()

    def _find(self, name: str, shape: tuple[int, ...]) -> _Place:
        if name not in self._places:
            raise ModelError(
                f"{self._source}: there is no tensor for {name!r} (the engine's own name); is the "
                "checkpoint complete, and of the family that its config.json names?"
            )
        place = self._places[name]
        if place.shape != shape:
            part = "" if place.is_whole else f" in its part for {name!r}"
            raise ModelError(
                f"{place.file.path}: tensor {place.stored_name!r} has shape {list(place.shape)}"
                f"{part}, but config.json asks for {list(shape)}"
            )
        return place

    def _read(self, name: str, target: Tensor) -> None:
        """Read into `target`, whose shape `_find` has agreed to."""
        place = self._places[name]
        place.file.read(place.stored_name, place.rows, target)
        self._progress.add(target.numel() * place.stored.dtype.itemsize)
        self._pop(name)
        if not self._num_left[place.file.path]:
            place.file.close()

    def _put(self, name: str, place: _Place) -> None:
        if name in self._places:
            other = self._places[name].stored_name
            raise ModelError(
                f"{place.file.path}: {place.stored_name!r} and {other!r} are the same tensor; "
                "which one counts?"
            )
        self._places[name] = place
        self._num_left[place.file.path] = self._num_left.get(place.file.path, 0) + 1

    def _pop(self, name: str) -> None:
        self._num_left[self._places.pop(name).file.path] -= 1


def rename(name: str, renames: Renames) -> str:
    """Give a stored tensor the engine's own name, by the first rule that fits."""
    for pattern, replacement in renames:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    return name
