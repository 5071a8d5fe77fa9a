"""How large an engine's steps and sequences are: what was asked for, or what suits the device."""

import logging
from dataclasses import dataclass

import torch

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import ConfigError

_log = logging.getLogger(__name__)

# A page of the cache is a tile of the Triton kernels.
PAGE_SIZES = (16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Whole numbers of tokens and sequences."""

    session_len: int  # tokens of prompt and answer
    max_batch_size: int  # sequences in a step
    max_num_tokens: int  # tokens in a step
    block_size: int  # tokens per KV block


def resolve_sizes(
    config: PytorchEngineConfig, *, max_positions: int, device: torch.device, has_triton: bool
) -> Sizes:
    """Fill in what the config leaves open.

    max_positions  of the model
    has_triton     whether Triton kernels read the cache
    Raises ConfigError for pages that those cannot read.
    """
    is_gpu = device.type == "cuda"
    block_size = config.block_size or (64 if is_gpu else 16)
    if has_triton and block_size not in PAGE_SIZES:
        raise ConfigError(
            f"block_size={block_size} does not suit the GPU's kernels; it must be one of "
            f"{', '.join(map(str, PAGE_SIZES))}"
        )
    return Sizes(
        session_len=_session_len(config.session_len, max_positions),
        max_batch_size=config.max_batch_size or (256 if is_gpu else 64),
        # A GPU wants steps whose weights are read for thousands of tokens; a CPU has no more speed
        # to gain from 2048 on, and what waits behind a step waits longer.
        max_num_tokens=config.max_prefill_token_num or (8192 if is_gpu else 2048),
        block_size=block_size,
    )


def _session_len(wanted: int | None, max_positions: int) -> int:
    """The context: what is wanted, but no position that the model has never seen."""
    if wanted is not None and wanted > max_positions:
        # LMDeploy's own examples ask for 8192 of models made for 4096: no reason to stop.
        _log.warning(
            "session_len=%d exceeds the %d positions the model was made for, which is what it "
            "gets; if it can do with more, set max_position_embeddings in hf_overrides",
            wanted,
            max_positions,
        )
    return min(wanted or max_positions, max_positions)
