"""Whether a model hands its decoder what we would hand it: found by letting it do so once.

transformers' models may do more with an image than put its rows over its placeholders: masks that
let an image's tokens see each other, features for deeper layers, positions of their own. Each of
these shows in the arguments of the decoder, for a prompt of two images.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from vlmflow_engine.errors import MediaError, ModelError
from vlmflow_engine.models.family import ImagePixels
from vlmflow_engine.models.generic.model import GenericModel
from vlmflow_engine.models.generic.processing import (
    PIXELS,
    PreparedImages,
    TransformersProcessor,
    brief,
)

_SIZES = ((64, 48), (48, 80))  # (width, height) of the images
# Of the largest embedding: with another image beside it one is summed up in another order.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class _Handed(Exception):
    """Ends a forward pass where the decoder's begins."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__("handed over")
        self.arguments = arguments


@torch.inference_mode()
def check_handover(
    model: PreTrainedModel, ours: GenericModel, folder: Path, placeholder_id: int
) -> None:
    """Compare what a model makes of two images with what we make of them. Raises ModelError."""
    processor = TransformersProcessor(folder)
    images = [Image.effect_noise(size, 60).convert("RGB") for size in _SIZES]
    text = "a".join([processor.token] * len(images))
    made = processor.processor(text=[text], images=[images], return_tensors="np")
    inputs = {name: torch.tensor(value, device=model.device) for name, value in made.items()}
    handed = _handed_over(model, inputs)
    token_ids: list[int] = inputs["input_ids"][0].tolist()
    together = processor(images)
    start = 0
    for expansion in together.expansions:
        start = _find(token_ids, list(expansion), start)
    alone = [processor([image]) for image in images]
    if tuple(item.expansions[0] for item in alone) != together.expansions:
        alone = [together]
    _check_embeddings(handed["inputs_embeds"][0], ours, token_ids, alone, placeholder_id)
    if ours.decoder.num_position_axes == 1:
        positions = torch.arange(len(token_ids))[None]
    else:
        positions = _grid_positions(token_ids, alone, placeholder_id)
    _check_others(handed, positions)


def _handed_over(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments that a model calls its decoder with."""

    def stop(module: Any, positional: tuple[Any, ...], arguments: dict[str, Any]) -> NoReturn:
        raise _Handed(arguments)

    decoder = model.get_decoder()
    implementation = decoder.config._attn_implementation
    decoder.config._attn_implementation = "eager"  # which needs all masks that there are
    hook = decoder.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**inputs, use_cache=False)
    except _Handed as handed:
        return handed.arguments
    except Exception as error:  # whatever a model's code does with its own processor's inputs
        raise ModelError(f"transformers cannot run it on an image: {brief(error)}") from error
    finally:
        hook.remove()
        decoder.config._attn_implementation = implementation
    raise ModelError("its decoder is not run on a prompt with images")


def _find(token_ids: list[int], expected: list[int], begin: int) -> int:
    """Return where these tokens end."""
    for start in range(begin, len(token_ids) - len(expected) + 1):
        if token_ids[start : start + len(expected)] == expected:
            return start + len(expected)
    raise ModelError("the tokens that an image becomes depend on what stands beside it")


def _check_embeddings(
    handed: Tensor,
    ours: GenericModel,
    token_ids: list[int],
    prepared: Sequence[PreparedImages],
    placeholder_id: int,
) -> None:
    """handed: [num_tokens, hidden_size]."""
    device, dtype = handed.device, handed.dtype
    is_row = torch.tensor(token_ids, device=device) == placeholder_id
    safe = torch.tensor(token_ids, device=device).masked_fill(is_row, 0)
    embeds = ours.decoder.embed(safe).clone()
    pixels = [
        ImagePixels(
            torch.tensor(item.arrays[PIXELS], device=device).to(dtype),
            (),
            {
                name: torch.tensor(array, device=device)
                for name, array in item.arrays.items()
                if name != PIXELS
            },
        )
        for item in prepared
    ]
    try:
        rows = torch.cat(ours.encode_images(pixels))
    except MediaError as error:
        raise ModelError(str(error)) from error
    if int(is_row.sum()) != len(rows):
        raise ModelError(
            f"two images have {int(is_row.sum())} placeholders for {len(rows)} embeddings"
        )
    embeds[is_row] = rows.to(dtype)
    difference = float((embeds - handed).abs().max())
    if not difference <= _TOLERANCE[dtype] * float(handed.abs().max()):
        raise ModelError(
            "it does more with an image than put its features over its placeholders: its decoder's "
            f"inputs differ from those by {difference:.2g}"
        )


def _grid_positions(
    token_ids: list[int], prepared: Sequence[PreparedImages], placeholder_id: int
) -> Tensor:
    """Place each image's rows on its grid, as `runner.positions` does: [3, num_tokens]."""
    parts: list[Tensor] = []
    grids = iter(item.grid(item.expansions[0].count(placeholder_id)) for item in prepared)
    unused, index = 0, 0
    while index < len(token_ids):
        if token_ids[index] != placeholder_id:
            parts.append(torch.full((3, 1), unused))
            unused, index = unused + 1, index + 1
            continue
        grid = next(grids, ())
        num_rows = math.prod(grid)
        if not grid or token_ids[index : index + num_rows] != [placeholder_id] * num_rows:
            raise ModelError("its images' tokens have places in an image that has no grid of them")
        parts.append(torch.stack(torch.meshgrid(*map(torch.arange, grid), indexing="ij")))
        parts[-1] = parts[-1].flatten(1) + unused
        unused, index = unused + max(grid), index + num_rows
    return torch.cat(parts, dim=1)


def _check_others(handed: dict[str, Any], positions: Tensor) -> None:
    """What the decoder is called with beside the embeddings; positions are [axes, num_tokens]."""
    for name, value in handed.items():
        if value is None or isinstance(value, bool | int | str) or name == "inputs_embeds":
            continue
        if name == "attention_mask" and _is_all_ones(value):
            continue
        if name == "position_ids" and _are_equal(value, positions):
            continue
        reason = {
            "attention_mask": "a mask of its own, so its attention is not simply causal",
            "position_ids": "positions that are neither the tokens' numbers nor their places",
        }.get(name, f"{name!r} beside the embeddings")
        raise ModelError(f"it hands its decoder {reason}")


def _is_all_ones(mask: Any) -> bool:
    return isinstance(mask, Tensor) and mask.ndim == 2 and bool((mask == 1).all())


def _are_equal(handed: Any, positions: Tensor) -> bool:
    """handed  [1, num_tokens] or [axes, 1, num_tokens], perhaps with the tokens' numbers before"""
    if not isinstance(handed, Tensor):
        return False
    axes = handed.cpu().reshape(-1, handed.shape[-1])
    return bool(torch.equal(axes[-len(positions) :], positions)) and len(axes) <= 4
