"""How a model wants its images: told by the checkpoint, used on both sides of the scheduler."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_TILES = 256  # of one image; more are no image of a model that was trained with 12 to 40


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFormat:
    """The place of an image in a prompt, and who makes its pixels. All of it is JSON."""

    processor: str  # its name in inputs.image_processors
    parameters: Mapping[str, Any] = field(default_factory=dict)  # what config.json tells it
    # The placeholder: an id, or a token whose id the tokenizer knows.
    token_id: int | None = None
    token: str | None = None
    # The tokenizer has no such token: a prompt is cut at it, and each part tokenised by itself.
    is_outside_vocabulary: bool = False
    # What a template that leaves images to the caller gets to see, see inputs.placement.
    in_item_order: bool = False
    before: str = ""
    after: str = ""
    end: str = "\n"
    # Special tokens around an image's placeholders that no template writes: both, or none.
    first_token: str | None = None
    last_token: str | None = None
    template: str | None = None  # a built-in chat template that config.json asks for
    fallback_template: str | None = None  # where neither the files nor the model's name tell one
    system: str | None = None  # the system message of that template, if it is another


@dataclass(frozen=True, slots=True)
class Normalisation:
    """(pixel * rescale - mean) / std, per colour channel."""

    rescale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
