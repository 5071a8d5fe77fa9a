"""LLaVA-1.6's tiles ("anyres"): an image is laid over the grid that suits it and cut up.

Two rules are in the world, and a checkpoint was trained with the first or converted for the second:

    original      a pinpoint is (width, height); the rows and columns that hold nothing but padding
                  are counted with `int`
    Hugging Face  the same list is read as (height, width), so that of two pinpoints that fit
                  equally well another one comes first; and the count is rounded to 7 digits before

They differ for images that fit into one tile, and for a few odd ratios.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from vlmflow_engine.errors import ImageFormatError, ModelError
from vlmflow_engine.inputs.image_processors.base import ImageProcessor, ProcessedImage
from vlmflow_engine.inputs.image_processors.clip import ClipImageProcessor

Size = tuple[int, int]  # (width, height)

# What is made of the features of the tiles.
MERGES = ("spatial_unpad", "spatial", "flat")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyresImageProcessor(ImageProcessor):
    """The whole image as one tile, then the tiles of the grid, row by row.

    An image's layout is (rows of tiles, columns of tiles, rows of features to drop at the top and
    at the bottom, columns of features to drop at either side).
    """

    kind: ClassVar[str] = "anyres"
    side: int  # pixels of a tile
    pinpoints: tuple[Size, ...]  # sizes of grids in pixels, the first of equals wins
    resample: int
    features: int  # of a tile's side
    merge: str  # one of MERGES
    rounds: bool  # the Hugging Face rule of unpadding

    @classmethod
    def from_folder(cls, folder: Path, parameters: Mapping[str, Any]) -> "AnyresImageProcessor":
        """parameters  the fields but for resample and normalisation, which are those of the
        folder's CLIP processor, or of what `preprocessor` holds of one
        """
        fields = {name: parameters[name] for name in ("side", "features", "merge", "rounds")}
        pinpoints = read_pinpoints(parameters["pinpoints"], fields["side"], str(folder))
        side, content = fields["side"], parameters.get("preprocessor")
        clip = (
            ClipImageProcessor.read(folder, 0, kinds=("CLIP", "LlavaNext"))
            if content is None
            else ClipImageProcessor.of_side(content, side, 0, folder)
        )
        if clip.crop != (side, side) or clip.shortest_edge not in (None, side):
            raise ModelError(
                f"{folder}: the image processor makes tiles of {clip.crop}, the vision tower takes "
                f"{side} x {side}"
            )
        return cls(
            pinpoints=pinpoints, resample=clip.resample, normalisation=clip.normalisation, **fields
        )

    @property
    def max_rows(self) -> int:
        # Unpadding takes only away.
        grids = [(height // self.side, width // self.side) for width, height in self.pinpoints]
        return max(self._num_rows((rows, columns, 0, 0)) for rows, columns in grids)

    def __call__(self, image: Image.Image, options: Mapping[str, int]) -> ProcessedImage:
        """The same for every image, whatever its options."""
        if min(image.size) < 2:
            raise ImageFormatError(
                f"image has {image.width:,} x {image.height:,} pixels; this model cuts images into "
                "tiles and needs at least 2 pixels a side"
            )
        width, height = best_pinpoint(image.size, self.pinpoints)
        resample = Image.Resampling(self.resample)
        resized = image.resize(_fitting(image.size, (width, height)), resample)
        canvas = Image.new("RGB", (width, height))
        canvas.paste(resized, ((width - resized.width) // 2, (height - resized.height) // 2))
        rows, columns, side = height // self.side, width // self.side, self.side
        tiles = np.empty((1 + rows * columns, side, side, 3), np.uint8)
        tiles[0] = np.asarray(image.resize((side, side), resample))
        grid = np.asarray(canvas).reshape(rows, side, columns, side, 3)
        tiles[1:] = grid.transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)
        layout = (rows, columns, *self._padding(image.size, rows, columns))
        return ProcessedImage(tiles, self._num_rows(layout), layout)

    def _padding(self, size: Size, rows: int, columns: int) -> Size:
        """Feature rows at top and bottom, and columns at either side, that hold only padding."""
        if self.merge != "spatial_unpad":
            return 0, 0
        width, height = size
        feature_rows, feature_columns = rows * self.features, columns * self.features
        if width / height > feature_columns / feature_rows:
            used = self._count(height * (feature_columns / width))
            return (feature_rows - used) // 2, 0
        used = self._count(width * (feature_rows / height))
        return 0, (feature_columns - used) // 2

    def _count(self, value: float) -> int:
        return int(round(value, 7)) if self.rounds else int(value)

    def _num_rows(self, layout: Sequence[int]) -> int:
        rows, columns, top, left = layout
        feature_rows = rows * self.features - 2 * top
        feature_columns = columns * self.features - 2 * left
        newlines = feature_rows if self.merge == "spatial_unpad" else 0
        return self.features**2 + feature_rows * feature_columns + newlines


def best_pinpoint(size: Size, pinpoints: Sequence[Size]) -> Size:
    """The grid that shows most of an image's pixels, and of those the one that wastes least."""
    width, height = size
    best, most, least = pinpoints[0], 0, math.inf
    for grid_width, grid_height in pinpoints:
        scale = min(grid_width / width, grid_height / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        wasted = grid_width * grid_height - shown
        if shown > most or (shown == most and wasted < least):
            best, most, least = (grid_width, grid_height), shown, wasted
    return best


def read_pinpoints(declared: Any, side: int, source: str) -> tuple[Size, ...]:
    """Check a list of pinpoints [(width, height), ...] in pixels. Raises ModelError."""
    is_list = isinstance(declared, list | tuple) and declared
    pairs = [tuple(item) if isinstance(item, list | tuple) else () for item in declared or ()]
    if not is_list or not all(
        len(pair) == 2 and all(type(n) is int and n > 0 and n % side == 0 for n in pair)
        for pair in pairs
    ):
        raise ModelError(
            f"{source}: image_grid_pinpoints must be pairs of multiples of {side}, the pixels of a "
            f"tile, got {repr(declared)[:100]}"
        )
    return tuple((width, height) for width, height in pairs)


def _fitting(size: Size, grid: Size) -> Size:
    """The largest size of an image's ratio within a grid."""
    (width, height), (grid_width, grid_height) = size, grid
    across, down = grid_width / width, grid_height / height
    if across < down:
        return grid_width, min(math.ceil(height * across), grid_height)
    return min(math.ceil(width * down), grid_width), grid_height
