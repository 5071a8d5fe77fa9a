"""Images as transformers' own processor makes them, for models that run through its code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Self

from PIL import Image

from vlmflow_engine.image_format import Normalisation
from vlmflow_engine.inputs.image_processors.base import ImageProcessor, ProcessedImage
from vlmflow_engine.models.generic.processing import (
    PIXELS,
    PreparedImages,
    TransformersProcessor,
)

_FILES = ("config.json", "processor_config.json", "preprocessor_config.json")
# (width, height) of images that such processors cut into as many parts as they ever do.
_LARGE = ((2048, 2048), (3072, 1024), (1024, 3072))


@dataclass(frozen=True, kw_only=True, eq=False)
class GenericImageProcessor(ImageProcessor):
    """Pixels come normalised, in whatever arrays the model's vision side takes."""

    kind: ClassVar[str] = "transformers"
    processor: TransformersProcessor = field(repr=False)
    rows_id: int  # the tokens of an expansion that embeddings take the place of
    files_digest: bytes  # of what the processor is made from

    @classmethod
    def from_folder(cls, folder: Path, parameters: Mapping[str, Any]) -> Self:
        digest = sha256(version("transformers").encode())
        for name in _FILES:
            if (folder / name).is_file():
                digest.update((folder / name).read_bytes())
        return cls(
            normalisation=Normalisation(1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # none is left
            processor=TransformersProcessor(folder),
            rows_id=parameters["placeholder_id"],
            files_digest=digest.digest(),
        )

    @property
    def token(self) -> str:
        return self.processor.token

    @property
    def placeholder_id(self) -> int:
        return self.rows_id

    @cached_property
    def joins_images(self) -> bool:
        """Whether what becomes of an image depends on the others of its prompt."""
        images = [Image.new("RGB", size) for size in ((64, 48), (48, 64))]
        together = self.processor(images).expansions
        return together != tuple(self.processor([image]).expansions[0] for image in images)

    @property
    def max_rows(self) -> int:
        return max(self.join([Image.new("RGB", size)]).num_rows for size in _LARGE)

    def __call__(self, image: Image.Image, options: Mapping[str, int]) -> ProcessedImage:
        """Whatever its options: transformers' processors have their own names for them."""
        return self.join([image])

    def join(self, images: Sequence[Image.Image]) -> ProcessedImage:
        """Process the images of one prompt together."""
        return self._processed(self.processor(images))

    def digest(self, options: Mapping[str, int]) -> bytes:
        return self.files_digest

    def _processed(self, prepared: PreparedImages) -> ProcessedImage:
        num_rows = sum(ids.count(self.rows_id) for ids in prepared.expansions)
        return ProcessedImage(
            pixels=prepared.arrays[PIXELS],
            num_rows=num_rows,
            layout=prepared.grid(num_rows),
            expansions=prepared.expansions,
            arrays={name: array for name, array in prepared.arrays.items() if name != PIXELS},
        )
