"""What enters the engine (`Request`) and what leaves it (`Response`)."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlmflow_engine.config import GenerationConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class ImageInput:
    """One image, resized and cropped, at its place in the prompt."""

    content_hash: bytes  # of the source bytes and of all that decides its embeddings
    pixels: "NDArray[np.uint8]"  # [height, width, 3]
    offset: int  # position of its first placeholder token
    num_tokens: int  # placeholder tokens, equal to its embedding rows

    @property
    def end(self) -> int:
        """The position behind its last placeholder token."""
        return self.offset + self.num_tokens


@dataclass(frozen=True, slots=True)
class Request:
    """A tokenised prompt, ready to be scheduled."""

    request_id: int
    prompt_token_ids: tuple[int, ...]  # placeholders expanded
    images: tuple[ImageInput, ...]  # by offset, spans disjoint
    generation: GenerationConfig
    seed: int  # with a position it decides the draw of a sampled token


@dataclass(slots=True)
class Response:
    """One answer. Field names and defaults are LMDeploy's."""

    text: str
    generate_token_len: int  # generated tokens, the stop token not counted
    input_token_len: int  # prompt tokens, expanded placeholders included
    finish_reason: str | None = None  # stop, length, error or abort
    token_ids: list[int] = field(default_factory=list)  # generated, the stop token left out
    index: int = 0  # position in the batch
    cached_tokens: int = 0  # prompt tokens taken from the prefix cache
    error_code: str | None = None
    error_message: str | None = None
