"""CLIP's image processing, bit for bit what transformers' Pillow processor does up to the crop."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmflow_engine.errors import ImageTooLargeError, ModelError
from vlmflow_engine.inputs.image_processors.base import (
    ImageProcessor,
    ProcessedImage,
    read_normalisation,
    read_processor,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipImageProcessor(ImageProcessor):
    """Resize the shortest edge, crop the centre."""

    kind: ClassVar[str] = "clip"
    shortest_edge: int | None  # None: no resize that keeps the ratio
    size: tuple[int, int] | None  # (height, width) of a resize that does not; None: none
    crop: tuple[int, int] | None  # (height, width); None: no crop
    resample: int
    num_rows: int  # of every image

    @classmethod
    def from_folder(cls, folder: Path, parameters: Mapping[str, Any]) -> "ClipImageProcessor":
        """parameters  `side` of the vision tower's images in pixels, `num_rows` of each"""
        processor, side = cls.read(folder, parameters["num_rows"]), parameters["side"]
        if (processor.crop or processor.size) != (side, side):
            raise ModelError(
                f"{folder}: the image processor makes images of {processor.crop}, "
                f"the vision tower takes {side} x {side}"
            )
        return processor

    @classmethod
    def read(
        cls, folder: Path, num_rows: int, *, kinds: tuple[str, ...] = ("CLIP",)
    ) -> "ClipImageProcessor":
        """Read the checkpoint's image processor, whatever size its images have.

        kinds  of the processors in transformers that have the fields of CLIP's
        """
        return read_processor(
            folder, lambda config, path: cls._from_config(config, path, num_rows, kinds)
        )

    @classmethod
    def of_side(
        cls, config: Mapping[str, Any], side: int, num_rows: int, folder: Path
    ) -> "ClipImageProcessor":
        """Make one from a preprocessor_config.json that may leave everything out but a side."""
        sizes = {"size": side, "crop_size": side}
        try:
            return cls._from_config(sizes | dict(config), folder, num_rows, ("CLIP",))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{folder}: not a known image processor of a vision tower: {error!r}"
            ) from error

    @classmethod
    def _from_config(
        cls, config: dict[str, Any], path: Path, num_rows: int, kinds: tuple[str, ...]
    ) -> "ClipImageProcessor":
        kind = config.get("image_processor_type", "CLIPImageProcessor")
        if not str(kind).startswith(tuple(f"{name}ImageProcessor" for name in kinds)):
            raise ModelError(
                f"{path}: image processor {kind!r} is not supported for this model; "
                f"{kinds[-1]}ImageProcessor is"
            )
        size, shortest_edge = None, None
        if config.get("do_resize", True):
            declared = config.get("size", 224)
            if isinstance(declared, int):
                shortest_edge = declared
            elif set(declared) == {"shortest_edge"}:
                shortest_edge = int(declared["shortest_edge"])
            else:
                size = (int(declared["height"]), int(declared["width"]))
        crop = None
        if config.get("do_center_crop", True):
            declared = config.get("crop_size", 224)
            if isinstance(declared, int):
                declared = {"height": declared, "width": declared}
            crop = (int(declared["height"]), int(declared["width"]))
        resized = size or (shortest_edge, shortest_edge)
        is_covered = all(a and a >= b for a, b in zip(resized, crop or (0, 0), strict=True))
        if crop and not is_covered:
            raise ModelError(f"{path}: a crop of {crop} does not fit images resized to {resized}")
        return cls(
            shortest_edge=shortest_edge,
            size=size,
            crop=crop,
            resample=int(Image.Resampling(config.get("resample", 3))),
            num_rows=num_rows,
            normalisation=read_normalisation(config, path),
        )

    @property
    def max_rows(self) -> int:
        return self.num_rows

    def __call__(self, image: Image.Image, options: Mapping[str, int]) -> ProcessedImage:
        """The same for every image, whatever its options."""
        return ProcessedImage(self.resized(image), self.num_rows)

    def resized(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the pixels [height, width, 3] of an RGB image, resized and cropped."""
        resample = Image.Resampling(self.resample)
        if self.shortest_edge is not None:
            width, height = image.size
            edges = (
                self.shortest_edge,
                int(self.shortest_edge * max(width, height) / min(width, height)),
            )
            if edges[0] * edges[1] > _MAX_RESIZED_PIXELS:
                raise ImageTooLargeError(
                    f"image of {width:,} x {height:,} pixels is too narrow: with its shortest "
                    f"edge at {self.shortest_edge} pixels the other would have {edges[1]:,}"
                )
            image = image.resize(edges if width <= height else edges[::-1], resample)
        elif self.size is not None:
            image = image.resize(self.size[::-1], resample)
        pixels = np.asarray(image)
        return _centre_crop(pixels, *self.crop) if self.crop is not None else pixels


# A file of 1 x 100,000 pixels is small, but not with its shortest edge at 336.
_MAX_RESIZED_PIXELS = 89_478_485


def _centre_crop(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])
