"""How a model wants its images: told by the checkpoint, used on both sides of the scheduler."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """Placeholders and size of one image."""

    token_id: int  # the placeholder in a prompt
    num_rows: int  # embedding rows of an image, and the placeholders it expands to
    side: int  # pixels of the square that the vision tower takes


@dataclass(frozen=True, slots=True)
class Normalisation:
    """(pixel * rescale - mean) / std, per colour channel."""

    rescale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
