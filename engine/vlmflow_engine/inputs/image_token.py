"""The token that stands for an image in a prompt, and what a family writes around it."""

from pathlib import Path

from vlmflow_engine.errors import ModelError
from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.inputs.placement import ImagePlacement, PlacementRule
from vlmflow_engine.inputs.tokenizer import PromptTokenizer


def find_image_token(
    folder: Path, tokenizer: PromptTokenizer, image_format: ImageFormat
) -> tuple[PromptTokenizer, str, int]:
    """Return the tokenizer to encode prompts with, the placeholder's token and its id.

    Raises ModelError if the tokenizer does not know it.
    """
    token, token_id = image_format.token, image_format.token_id
    if image_format.is_outside_vocabulary:
        assert token is not None
        tokenizer = tokenizer.with_placeholder(token, token_id)
    elif token_id is not None:
        token = tokenizer.token(token_id)
        if token is None:
            raise ModelError(
                f"{folder}: the tokenizer has no token {token_id}, which is to stand for an image"
            )
        return tokenizer, token, token_id
    assert token is not None
    return tokenizer, token, _known_id(folder, tokenizer, token)


def find_wrapping_ids(
    folder: Path, tokenizer: PromptTokenizer, image_format: ImageFormat
) -> tuple[list[int], list[int]]:
    """Return the ids that stand before and behind an image's placeholders.

    Raises ModelError if the tokenizer does not know a token.
    """
    before, behind = (
        [_known_id(folder, tokenizer, token)] if token is not None else []
        for token in (image_format.first_token, image_format.last_token)
    )
    return before, behind


def image_placement(image_format: ImageFormat, token: str) -> ImagePlacement:
    """How a family writes images into a text."""
    return ImagePlacement(
        token,
        rule=PlacementRule.ITEM_ORDER if image_format.in_item_order else PlacementRule.PREFIX,
        before=image_format.before,
        after=image_format.after,
        end=image_format.end,
    )


def _known_id(folder: Path, tokenizer: PromptTokenizer, token: str) -> int:
    token_id = tokenizer.token_id(token)
    if token_id is None:
        raise ModelError(
            f"{folder}: the tokenizer has no token {token!r}, which is to stand for an image"
        )
    return token_id
