"""Qwen2-VL's image processing: an image keeps its ratio and, within limits, its size.

Bit for bit what transformers' Pillow processor does up to the normalisation. Patches are cut where
the vision tower runs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from vlmflow_engine.checks import is_whole
from vlmflow_engine.errors import ImageFormatError, ImageTooLargeError, ModelError
from vlmflow_engine.inputs.image_processors.base import (
    ImageProcessor,
    ProcessedImage,
    read_normalisation,
    read_processor,
)

_MAX_RATIO = 200  # of an image's sides
# What a caller's min_pixels may ask for at most.
_MAX_RESIZED_PIXELS = 89_478_485
# transformers' own, where the checkpoint's files name none.
_MIN_PIXELS, _MAX_PIXELS = 56 * 56, 28 * 28 * 1280


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen2VLImageProcessor(ImageProcessor):
    """Resize both sides to multiples of a unit's."""

    kind: ClassVar[str] = "qwen2_vl"
    unit: int  # pixels of a side that become one embedding row
    min_pixels: int  # of a resized image
    max_pixels: int
    do_resize: bool
    resample: int

    @classmethod
    def from_folder(cls, folder: Path, parameters: Mapping[str, Any]) -> "Qwen2VLImageProcessor":
        """parameters  `patch_size` in pixels, `merge_size` in patches"""
        return read_processor(
            folder, lambda config, path: cls._from_config(config, path, parameters)
        )

    @classmethod
    def _from_config(
        cls, config: dict[str, Any], path: Path, parameters: Mapping[str, Any]
    ) -> "Qwen2VLImageProcessor":
        kind = config.get("image_processor_type", "Qwen2VLImageProcessor")
        if not str(kind).startswith(("Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor")):
            raise ModelError(
                f"{path}: image processor {kind!r} is not supported yet; Qwen2-VL's is"
            )
        for name, default in (("patch_size", 14), ("merge_size", 2)):
            if (value := config.get(name, default)) != parameters[name]:
                raise ModelError(
                    f"{path}: {name} is {value!r}, but the vision tower's is {parameters[name]}"
                )
        low, high = _limits(config, path)
        return cls(
            unit=parameters["patch_size"] * parameters["merge_size"],
            min_pixels=low,
            max_pixels=high,
            do_resize=bool(config.get("do_resize", True)),
            resample=int(Image.Resampling(config.get("resample", 3))),
            normalisation=read_normalisation(config, path),
        )

    @property
    def max_rows(self) -> int:
        def longest(pixels: int) -> float:  # side in units of the narrowest image
            return math.sqrt(pixels * _MAX_RATIO) / self.unit

        shrunk, grown = self.max_pixels / self.unit**2, self.min_pixels / self.unit**2
        # An image shrinks to whole units, but no side to none; when it grows, both sides do.
        sides = longest(self.min_pixels) + longest(self.min_pixels) / _MAX_RATIO
        return max(int(shrunk), int(longest(self.max_pixels)), math.ceil(grown + sides + 1), 1)

    def __call__(self, image: Image.Image, options: Mapping[str, int]) -> ProcessedImage:
        """Of the options min_pixels and max_pixels count; they win over the checkpoint's limits."""
        height, width = image.height, image.width
        if self.do_resize:
            height, width = self.size(height, width, options)
            image = image.resize((width, height), Image.Resampling(self.resample))
        elif height % self.unit or width % self.unit:
            raise ImageFormatError(
                f"image of {width:,} x {height:,} pixels: the checkpoint resizes none, so both "
                f"must be multiples of {self.unit}"
            )
        rows, columns = height // self.unit, width // self.unit
        return ProcessedImage(np.asarray(image), rows * columns, (1, rows, columns))

    def size(self, height: int, width: int, options: Mapping[str, int]) -> tuple[int, int]:
        """Return the (height, width) that an image is resized to. Raises a MediaError."""
        low, high = options.get("min_pixels"), options.get("max_pixels")
        # A limit of the caller's sets the checkpoint's aside if it contradicts it.
        if low is None:
            low = self.min_pixels if high is None or self.min_pixels <= high else 1
        if high is None:
            high = self.max_pixels if low <= self.max_pixels else _MAX_RESIZED_PIXELS
        if max(height, width) > _MAX_RATIO * min(height, width):
            raise ImageFormatError(
                f"image of {width:,} x {height:,} pixels: one side is more than {_MAX_RATIO} "
                "times the other, which is as much as this model takes; cut it into parts"
            )
        resized = smart_resize(height, width, self.unit, low, high)
        if resized[0] * resized[1] > _MAX_RESIZED_PIXELS:
            raise ImageTooLargeError(
                f"image of {width:,} x {height:,} pixels would be resized to {resized[1]:,} x "
                f"{resized[0]:,}; lower its min_pixels={low} or its max_pixels={high}"
            )
        return resized


def smart_resize(
    height: int, width: int, unit: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Return the (height, width) nearest to an image's own, in whole units and within the limits.

    A half is rounded to the even number of units, as Python's `round` does.
    """
    rows, columns = round(height / unit), round(width / unit)
    if rows * columns * unit**2 > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / unit))
        columns = max(1, math.floor(width / shrink / unit))
    elif rows * columns * unit**2 < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / unit), math.ceil(width * grow / unit)
    return rows * unit, columns * unit


def _limits(config: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """min_pixels and max_pixels, in any of the spellings that files have had."""
    size = config.get("size") or {}
    limits = []
    for old, new, default in (
        ("min_pixels", "shortest_edge", _MIN_PIXELS),
        ("max_pixels", "longest_edge", _MAX_PIXELS),
    ):
        places = (config.get(old), size.get(new), size.get(old))
        value = next((place for place in places if place is not None), default)
        if not is_whole(value) or value < 1:
            raise ModelError(f"{path}: {old} must be a whole number of at least 1, got {value!r}")
        limits.append(value)
    low, high = limits
    if low > high:
        raise ModelError(f"{path}: min_pixels={low} is above max_pixels={high}")
    return low, high
