"""LLaVA-1.6 (NeXT) in Hugging Face form: LLaVA-1.5 over the tiles of an image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlmflow_engine.errors import ModelError
from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.models.clip_projector import PREFIXES
from vlmflow_engine.models.families.llava import RENAMES, LlavaFamily, LlavaModel
from vlmflow_engine.models.family import ImagePixels
from vlmflow_engine.models.tile_merge import merge_tiles
from vlmflow_engine.models.weights import Checkpoint, Renames


class LlavaNextModel(LlavaModel):
    """A LLaVA whose images are tiles, put together behind the projector."""

    def __init__(
        self,
        config: Any,
        weights: Checkpoint,
        *,
        renames: Renames,
        dtype: torch.dtype,
        device: torch.device,
        num_linears: int = 2,
        merge: str = "spatial_unpad",
    ) -> None:
        """merge  see `tile_merge`"""
        self._merge = merge
        has_newline = merge == "spatial_unpad"
        hidden_size = config.text_config.hidden_size
        self._newline = weights.take("newline", hidden_size) if has_newline else None
        super().__init__(
            config, weights, renames=renames, dtype=dtype, device=device, num_linears=num_linears
        )

    def encode_images(self, images: Sequence[ImagePixels]) -> list[Tensor]:
        """Return each image's embeddings [rows, hidden_size]."""
        encoded = self.vision.encode([image.values for image in images])
        return [
            merge_tiles(tiles, image.layout, self._merge, self._newline)
            for tiles, image in zip(encoded, images, strict=True)
        ]


class LlavaNextFamily(LlavaFamily):
    name = "LLaVA-1.6 (NeXT)"
    architectures = ("LlavaNextForConditionalGeneration",)
    checkpoints = "llava-hf/llava-v1.6-*"
    vision_prefixes = (*PREFIXES, "newline")

    def check(self, config: Any) -> None:
        super().check(config)
        check_whole_patches(config)

    def image_format(self, config: Any) -> ImageFormat:
        vision = config.vision_config
        return ImageFormat(
            processor="anyres",
            parameters={
                "side": vision.image_size,
                "features": vision.image_size // vision.patch_size,
                # transformers reads the original's list of (width, height) as (height, width).
                "pinpoints": [pinpoint[::-1] for pinpoint in config.image_grid_pinpoints],
                "merge": "spatial_unpad",
                "rounds": True,
            },
            token_id=config.image_token_id,
        )

    def renames(self, config: Any) -> Renames:
        return (*RENAMES, (r"(model\.)?image_newline$", "newline"))

    def load(
        self, config: Any, weights: Checkpoint, *, dtype: torch.dtype, device: torch.device
    ) -> LlavaNextModel:
        renames = self.renames(config)
        return LlavaNextModel(config, weights, renames=renames, dtype=dtype, device=device)


def check_whole_patches(config: Any) -> None:
    """Raise ModelError where tiles have features that are no part of a picture."""
    strategy = config.vision_feature_select_strategy
    if strategy != "default":
        raise ModelError(
            f"vision_feature_select_strategy={strategy!r} does not go with tiles: the class token "
            "has no place in a picture; it must be 'default'"
        )
