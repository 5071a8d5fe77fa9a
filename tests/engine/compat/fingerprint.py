"""Whether two prompts are one to the model, told from outside the engine."""

import math
from typing import Any

from vlmflow_engine import GenerationConfig, Pipeline

# The mean cross-entropy is over all tokens of a prompt, those of its images too.
_CONFIG = GenerationConfig(max_new_tokens=4, ignore_eos=True, return_ppl=True)


def is_same(pipe: Pipeline, prompt: Any, other: Any, **options: Any) -> bool:
    """Whether two prompts have the same tokens and images; `options` are those of the second."""
    first, second = pipe(prompt, _CONFIG), pipe(other, _CONFIG, **options)
    for response in (first, second):
        assert response.error_code is None, response.error_message
    return (
        first.input_token_len == second.input_token_len
        and math.isclose(first.ppl, second.ppl, abs_tol=1e-5)
        and first.token_ids == second.token_ids
    )


def reads_as(pipe: Pipeline, prompt: Any, text: str, *images: Any) -> bool:
    """Whether a prompt is rendered as this text, <IMAGE_TOKEN> where its images stand."""
    written = (text, list(images)) if images else text
    return is_same(pipe, prompt, written, do_preprocess=False)
