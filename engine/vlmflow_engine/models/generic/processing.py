"""Images through transformers' own processor. No torch here: preprocessing workers run it too."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmflow_engine.errors import MediaError, ModelError
from vlmflow_engine.models.generic.processor_class import load_processor

PIXELS = "pixel_values"
_OF_THE_TEXT = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "text_replacement_offsets",
)
_MAX_REASON = 300  # characters of what transformers says


@dataclass(frozen=True, slots=True, eq=False)
class PreparedImages:
    """What a processor makes of some images."""

    arrays: dict[str, NDArray[Any]]  # arguments of the model's get_image_features, and others
    expansions: tuple[tuple[int, ...], ...]  # the token ids that each image's token becomes

    def grid(self, num_rows: int) -> tuple[int, ...]:
        """(frames, rows, columns) of an image's embeddings, where the processor tells its patches'.

        A model merges squares of patches; how large they are shows in the number of embeddings.
        """
        patches = self.arrays.get("image_grid_thw")
        if patches is None or len(patches) != 1 or not num_rows:
            return ()
        frames, height, width = (int(side) for side in patches[0])
        side = math.isqrt(frames * height * width // num_rows)
        return frames, height // side, width // side


class TransformersProcessor:
    """A checkpoint's processor, of a class of transformers' own, on Pillow."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelError."""
        try:
            self.processor: Any = load_processor(folder)
        except ModelError:
            raise
        except Exception as error:  # of many classes, and over many lines
            raise ModelError(
                f"{folder}: transformers cannot load its processor: {brief(error)}"
            ) from error
        token = getattr(self.processor, "image_token", None)
        if not isinstance(token, str) or not hasattr(self.processor, "image_processor"):
            raise ModelError(
                f"{folder}: transformers' {type(self.processor).__name__} does not say which token "
                "stands for an image"
            )
        self.token: str = token

    def __call__(self, images: Sequence[Image.Image]) -> PreparedImages:
        """Process the RGB images of one prompt. Raises MediaError."""
        try:
            output = self.processor(
                text=[self.token * len(images)],
                images=[list(images)],
                return_tensors="np",
                return_text_replacement_offsets=True,
            )
        except Exception as error:  # whatever an image of any size brings about in it
            sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
            raise MediaError(
                f"transformers' {type(self.processor).__name__} refuses an image of {sizes} "
                f"pixels: {brief(error)}"
            ) from error
        replaced = output.get("text_replacement_offsets") or [[]]
        arrays = {
            name: np.asarray(value) for name, value in output.items() if name not in _OF_THE_TEXT
        }
        if len(replaced[0]) != len(images) or PIXELS not in arrays:
            raise ModelError(
                f"transformers' {type(self.processor).__name__} does not say what an image becomes"
            )
        tokenizer = self.processor.tokenizer
        return PreparedImages(
            arrays,
            tuple(
                tuple(tokenizer(item["replacement"], add_special_tokens=False)["input_ids"])
                for item in replaced[0]
            ),
        )


def brief(error: BaseException) -> str:
    """What a library says, short enough for a sentence."""
    return " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
