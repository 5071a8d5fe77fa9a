"""Sequences for the scheduler's tests: token ids and image spans, no model, no pixels."""

from hashlib import sha256
from itertools import count

import numpy as np

from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.request import ImageInput, Request
from vlmflow_engine.sequence import Sequence

_ids = count()
_NO_PIXELS = np.zeros((1, 1, 3), np.uint8)


def make_image(name: str, offset: int, num_tokens: int) -> ImageInput:
    return ImageInput(sha256(name.encode()).digest(), _NO_PIXELS, offset, num_tokens)


def make_sequence(
    token_ids: list[int],
    images: list[ImageInput] | None = None,
    *,
    max_new_tokens: int = 8,
    adapter_name: str | None = None,
) -> Sequence:
    request = Request(
        request_id=next(_ids),
        prompt_token_ids=tuple(token_ids),
        images=tuple(images or ()),
        generation=GenerationConfig(max_new_tokens=max_new_tokens),
        seed=0,
        adapter_name=adapter_name,
    )
    return Sequence(
        request, max_num_tokens=len(token_ids) + max_new_tokens, stop_token_ids=frozenset()
    )
