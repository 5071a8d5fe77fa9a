"""What all image processors share."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from numpy.typing import NDArray
from PIL import Image

from vlmflow_engine.errors import ModelError
from vlmflow_engine.image_format import Normalisation

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Processor = TypeVar("Processor")


@dataclass(frozen=True, slots=True, eq=False)
class ProcessedImage:
    """Pixels as the vision tower takes them, not yet normalised, and what they become.

    Pixels stay uint8 until they are on the device: a quarter of the bytes, and normalising there
    is free beside the vision tower.
    """

    # uint8 [height, width, 3] or [tiles, height, width, 3]; of another dtype they are as the model
    # wants them, normalised and in any shape.
    pixels: NDArray[Any]
    num_rows: int  # embedding rows, and the placeholders that the image expands to
    layout: tuple[int, ...] = ()  # what the family's model has to know beside the pixels
    # The tokens that take the place of each image's own; empty: one image, num_rows placeholders.
    expansions: tuple[tuple[int, ...], ...] = ()
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # beside pixels, by name

    @property
    def num_bytes(self) -> int:
        return self.pixels.nbytes + sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProcessor(ABC):
    """A family's way from an RGB image to pixels; the outcome depends on its fields alone."""

    kind: ClassVar[str]  # as ImageFormat.processor names it
    normalisation: Normalisation  # left to the device

    @classmethod
    @abstractmethod
    def from_folder(cls, folder: Path, parameters: Mapping[str, Any]) -> Self:
        """Read what the checkpoint's files say; `parameters` are those of its ImageFormat.

        Raises ModelError.
        """

    @property
    @abstractmethod
    def max_rows(self) -> int:
        """The most rows that an image without options of its own can become."""

    @abstractmethod
    def __call__(self, image: Image.Image, options: Mapping[str, int]) -> ProcessedImage:
        """Process an RGB image.

        options  of this image, see inputs.image_options; one that means nothing here is passed over
        Raises a MediaError, or InvalidRequestError for an option that cannot be met.
        """

    @property
    def token(self) -> str | None:
        """What stands for an image in a prompt; None: what the ImageFormat says."""
        return None

    @property
    def placeholder_id(self) -> int | None:
        """The token of an image's `expansions` that an embedding stands for; None: its own."""
        return None

    @property
    def joins_images(self) -> bool:
        """Whether the images of a prompt have to be processed together."""
        return False

    def join(self, images: Sequence[Image.Image]) -> ProcessedImage:
        """Process the images of a prompt together, where `joins_images` says so."""
        raise NotImplementedError

    def digest(self, options: Mapping[str, int]) -> bytes:
        """Name the parameters: the same file processed in another way is another image."""
        content = [self.kind, asdict(self), dict(options)]
        return sha256(json.dumps(content, sort_keys=True).encode()).digest()


def read_processor_config(folder: Path) -> tuple[dict[str, Any], Path] | None:
    """The image processor's part of processor_config.json (transformers 5) or
    preprocessor_config.json, and the file it stands in. Raises ModelError."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (path := folder / name).is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                content = content.get("image_processor", content)
                if "image_processor_type" in content or "image_mean" in content:
                    return content, path
            except (ValueError, TypeError, AttributeError) as error:
                raise ModelError(f"{path}: not a known image processor: {error!r}") from error
    return None


def read_processor(folder: Path, make: Callable[[dict[str, Any], Path], Processor]) -> Processor:
    """Make a processor of the folder's config and the file it stands in. Raises ModelError."""
    found = read_processor_config(folder)
    if found is None:
        raise ModelError(
            f"{folder}: no image processor, neither preprocessor_config.json nor "
            "processor_config.json describes one"
        )
    config, path = found
    try:
        return make(config, path)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path}: not a known image processor: {error!r}") from error


def read_normalisation(
    config: Mapping[str, Any],
    path: Path,
    *,
    mean: tuple[float, float, float] = CLIP_MEAN,
    std: tuple[float, float, float] = CLIP_STD,
) -> Normalisation:
    """Read an image processor's fields; `mean` and `std` are its class's defaults.

    Raises ModelError, or what a value of another kind raises.
    """
    rescale, normalise = config.get("do_rescale", True), config.get("do_normalize", True)
    deviation = _three(config.get("image_std", std) if normalise else (1, 1, 1))
    if 0 in deviation:
        raise ModelError(f"{path}: image_std {deviation} divides by zero")
    return Normalisation(
        rescale=float(config.get("rescale_factor", 1 / 255)) if rescale else 1.0,
        mean=_three(config.get("image_mean", mean) if normalise else (0, 0, 0)),
        std=deviation,
    )


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
