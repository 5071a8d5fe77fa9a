"""InternVL's image processing: an image is stretched over a grid of square tiles.

Hugging Face's processor and the original's code cut alike, pixel for pixel; they differ in where
the numbers stand, and the original can do without the grid or the thumbnail.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmflow_engine.checks import is_whole
from vlmflow_engine.errors import InvalidRequestError, ModelError
from vlmflow_engine.image_format import MAX_TILES, Normalisation
from vlmflow_engine.inputs.image_processors.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageProcessor,
    ProcessedImage,
    read_normalisation,
    read_processor,
)
from vlmflow_engine.inputs.tile_grid import choose_grid


@dataclass(frozen=True, slots=True, kw_only=True)
class InternVLImageProcessor(ImageProcessor):
    """Tiles of the grid row by row, then the whole image as one more tile."""

    kind: ClassVar[str] = "internvl"
    side: int  # of a tile, in pixels
    rows_per_tile: int
    min_tiles: int
    max_tiles: int
    is_dynamic: bool  # False: every image is one tile
    has_thumbnail: bool  # of images with more than one tile
    resample: int

    @classmethod
    def from_folder(cls, folder: Path, parameters: Mapping[str, Any]) -> "InternVLImageProcessor":
        """parameters  `patch_size` in pixels, `shuffle_factor` patches of a row become one"""
        return read_processor(
            folder, lambda config, path: cls._from_config(config, path, parameters)
        )

    @classmethod
    def _from_config(
        cls, config: dict[str, Any], path: Path, parameters: Mapping[str, Any]
    ) -> "InternVLImageProcessor":
        kind = config.get("image_processor_type")
        if not str(kind).startswith("GotOcr2ImageProcessor"):
            raise ModelError(f"{path}: image processor {kind!r} is not InternVL's, GotOcr2's is")
        size = config.get("size", {"height": 384, "width": 384})
        side = size["height"]
        if side != size["width"] or not is_whole(side):
            raise ModelError(f"{path}: tiles must be squares of whole pixels, got {size!r}")
        low, high = config.get("min_patches", 1), config.get("max_patches", 12)
        check_tiles(low, high, f"{path}: min_patches and max_patches")
        if high == 1 and not config.get("do_resize", True):
            raise ModelError(f"{path}: one tile an image, and do_resize is false")
        return cls(
            side=side,
            rows_per_tile=rows_per_tile(side, parameters, str(path)),
            min_tiles=low,
            max_tiles=high,
            is_dynamic=True,  # crop_to_patches: the model's processor always asks for it
            has_thumbnail=True,
            resample=int(Image.Resampling(config.get("resample", 3))),
            normalisation=read_normalisation(config, path),
        )

    @property
    def max_rows(self) -> int:
        num_tiles = self.max_tiles if self.is_dynamic else 1
        return (num_tiles + (self.has_thumbnail and num_tiles > 1)) * self.rows_per_tile

    def __call__(self, image: Image.Image, options: Mapping[str, int]) -> ProcessedImage:
        """options  `max_dynamic_patch`: the most tiles, the thumbnail not counted"""
        grid = (1, 1)
        if self.is_dynamic:
            limit = options.get("max_dynamic_patch", self.max_tiles)
            if limit > MAX_TILES:
                raise InvalidRequestError(
                    f"an image's max_dynamic_patch is at most {MAX_TILES}, got {limit}"
                )
            grid = choose_grid(image.size, self.side, min_tiles=self.min_tiles, max_tiles=limit)
        tiles = self._cut(image, *grid)
        return ProcessedImage(tiles, len(tiles) * self.rows_per_tile)

    def _cut(self, image: Image.Image, columns: int, rows: int) -> NDArray[np.uint8]:
        """Return the tiles [tiles, side, side, 3]."""
        side, num_tiles = self.side, columns * rows
        resample = Image.Resampling(self.resample)
        has_thumbnail = self.has_thumbnail and num_tiles > 1
        tiles = np.empty((num_tiles + has_thumbnail, side, side, 3), np.uint8)
        canvas = np.asarray(image.resize((columns * side, rows * side), resample))
        grid = tiles[:num_tiles].reshape(rows, columns, side, side, 3)
        grid[:] = canvas.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
        if has_thumbnail:
            tiles[-1] = np.asarray(image.resize((side, side), resample))
        return tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class InternVLChatImageProcessor(InternVLImageProcessor):
    """The original's, whose numbers stand in config.json."""

    kind: ClassVar[str] = "internvl_chat"

    @classmethod
    def from_folder(
        cls, folder: Path, parameters: Mapping[str, Any]
    ) -> "InternVLChatImageProcessor":
        """parameters  those above, and `side`, `min_tiles`, `max_tiles`, `is_dynamic`,
        `has_thumbnail`"""
        side = parameters["side"]
        return cls(
            side=side,
            rows_per_tile=rows_per_tile(side, parameters, str(folder)),
            min_tiles=parameters["min_tiles"],
            max_tiles=parameters["max_tiles"],
            is_dynamic=parameters["is_dynamic"],
            has_thumbnail=parameters["has_thumbnail"],
            resample=int(Image.Resampling.BICUBIC),
            normalisation=Normalisation(1 / 255, IMAGENET_MEAN, IMAGENET_STD),
        )


def check_tiles(low: Any, high: Any, what: str) -> None:
    """Raise ModelError if these are no numbers of tiles."""
    if not (is_whole(low) and is_whole(high) and 1 <= low <= high <= MAX_TILES):
        raise ModelError(
            f"{what} must be whole numbers from 1 to {MAX_TILES}, the least first, got "
            f"{repr(low)[:40]} and {repr(high)[:40]}"
        )


def rows_per_tile(side: int, parameters: Mapping[str, Any], where: str) -> int:
    """Embedding rows of a tile. Raises ModelError if the patches cannot be put together."""
    patch_size, factor = parameters["patch_size"], parameters["shuffle_factor"]
    grid = side // patch_size
    if grid < 1 or grid % factor:
        raise ModelError(
            f"{where}: a tile of {side} x {side} pixels has {grid} x {grid} patches of "
            f"{patch_size}, which cannot be put together by {factor} x {factor}"
        )
    rows: int = (grid // factor) ** 2
    return rows
