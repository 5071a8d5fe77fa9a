"""CLIP's image processing, bit for bit what transformers' Pillow processor does up to the crop.

Pixels stay uint8 until they are on the device: a quarter of the bytes, and normalising there is
free beside the vision tower.
"""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmflow_engine.errors import ImageTooLargeError, ModelError
from vlmflow_engine.image_format import Normalisation


@dataclass(frozen=True, slots=True)
class ClipImageProcessor:
    """Resize the shortest edge, crop the centre; `normalisation` is left to the device."""

    shortest_edge: int | None  # None: no resize that keeps the ratio
    size: tuple[int, int] | None  # (height, width) of a resize that does not; None: none
    crop: tuple[int, int] | None  # (height, width); None: no crop
    resample: int
    normalisation: Normalisation

    @classmethod
    def from_folder(cls, folder: Path) -> "ClipImageProcessor":
        """Read preprocessor_config.json, or processor_config.json of transformers 5."""
        for name in ("processor_config.json", "preprocessor_config.json"):
            if (path := folder / name).is_file():
                try:
                    content = json.loads(path.read_text(encoding="utf-8"))
                    content = content.get("image_processor", content)
                    if "image_processor_type" in content or "image_mean" in content:
                        return cls._from_config(content, path)
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise ModelError(f"{path}: not a known image processor: {error!r}") from error
        raise ModelError(
            f"{folder}: no image processor, neither preprocessor_config.json nor "
            "processor_config.json describes one"
        )

    @classmethod
    def _from_config(cls, config: dict[str, Any], path: Path) -> "ClipImageProcessor":
        kind = config.get("image_processor_type", "CLIPImageProcessor")
        if not str(kind).startswith("CLIPImageProcessor"):
            raise ModelError(f"{path}: image processor {kind!r} is not supported yet; CLIP's is")
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
        rescale, normalise = config.get("do_rescale", True), config.get("do_normalize", True)
        std = _three(config.get("image_std", _CLIP_STD) if normalise else (1, 1, 1))
        if 0 in std:
            raise ModelError(f"{path}: image_std {std} divides by zero")
        return cls(
            shortest_edge=shortest_edge,
            size=size,
            crop=crop,
            resample=int(Image.Resampling(config.get("resample", 3))),
            normalisation=Normalisation(
                rescale=float(config.get("rescale_factor", 1 / 255)) if rescale else 1.0,
                mean=_three(config.get("image_mean", _CLIP_MEAN) if normalise else (0, 0, 0)),
                std=std,
            ),
        )

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
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

    def digest(self) -> bytes:
        """Name the parameters: the same file processed in another way is another image."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).digest()


# A file of 1 x 100,000 pixels is small, but not with its shortest edge at 336.
_MAX_RESIZED_PIXELS = 89_478_485
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _centre_crop(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])
