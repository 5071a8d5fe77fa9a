"""What original LLaVA-1.5 makes of an image: a square, by padding or by cutting its ends off."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from vlmflow_engine.errors import ImageTooLargeError, ModelError
from vlmflow_engine.inputs.image_processors.base import ProcessedImage
from vlmflow_engine.inputs.image_processors.clip import ClipImageProcessor

# A canvas of 1 GB; an image of one pixel by many would ask for more.
_MAX_CANVAS_PIXELS = 358_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaSquareImageProcessor(ClipImageProcessor):
    """CLIP's processor, with `pads` behind a square canvas of the mean colour."""

    kind: ClassVar[str] = "llava_square"
    pads: bool

    @classmethod
    def from_folder(
        cls, folder: Path, parameters: Mapping[str, Any]
    ) -> "LlavaSquareImageProcessor":
        """parameters  `side`, `num_rows`, `pads`, and what `preprocessor` the tower brings"""
        side, num_rows = parameters["side"], parameters["num_rows"]
        clip = ClipImageProcessor.of_side(parameters["preprocessor"], side, num_rows, folder)
        if clip.crop != (side, side):
            raise ModelError(
                f"{folder}: the image processor of its vision tower makes images of {clip.crop}, "
                f"the tower takes {side} x {side}"
            )
        fields = {item: getattr(clip, item) for item in ("shortest_edge", "size", "crop")}
        return cls(
            **fields,
            resample=clip.resample,
            num_rows=num_rows,
            pads=parameters["pads"],
            normalisation=clip.normalisation,
        )

    def __call__(self, image: Image.Image, options: Mapping[str, int]) -> ProcessedImage:
        """The same for every image, whatever its options."""
        if self.pads:
            image = self._padded(image)
        return ProcessedImage(self.resized(image), self.num_rows)

    def _padded(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        side = max(width, height)
        if side * side > _MAX_CANVAS_PIXELS:
            raise ImageTooLargeError(
                f"image of {width:,} x {height:,} pixels is too long: padded to a square it would "
                f"have {side * side:,} pixels, more than {_MAX_CANVAS_PIXELS:,}"
            )
        red, green, blue = (int(255 * mean) for mean in self.normalisation.mean)
        canvas = Image.new("RGB", (side, side), (red, green, blue))
        canvas.paste(image, ((side - width) // 2, (side - height) // 2))
        return canvas
