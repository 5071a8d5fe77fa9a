"""How much memory a step takes beside weights and cache, found by taking the largest one there is.

On a GPU the KV cache gets what is left then. Otherwise the first full batch, or the first large
image, would find no room hours after the start.
"""

from collections.abc import Callable

import torch

from vlmflow_engine.errors import ConfigError
from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache
from vlmflow_engine.kernels.paged_metadata import PagedMetadata
from vlmflow_engine.models.family import PagedDecoder
from vlmflow_engine.request import Request
from vlmflow_engine.runner.drawer import make_drawer
from vlmflow_engine.runner.sizes import Sizes
from vlmflow_engine.sequence import Sequence


def peak_bytes(run: Callable[[], None], device: torch.device, *, what: str) -> int:
    """The most that `run` allocates on a CUDA device at any moment, beyond what was there.

    Raises ConfigError, naming `what`, if that is more than there is.
    """
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        run()
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{what} takes more than the {torch.cuda.mem_get_info(device)[0] / 2**30:,.1f} GiB "
            "that the weights leave free; lower max_batch_size, max_prefill_token_num or "
            "max_image_pixels"
        ) from error
    peak = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    return peak


def run_largest_step(
    decoder: PagedDecoder,
    caches: list[LayerKVCache],
    sizes: Sizes,
    device: torch.device,
) -> None:
    """Compute a full step: one long chunk, all other sequences with one token, all of them drawn.

    caches  of one block at least; nothing is written to them
    """
    num_decodes = min(sizes.max_batch_size, sizes.max_num_tokens) - 1
    chunk_len = min(sizes.max_num_tokens - num_decodes, sizes.session_len)
    num_tokens, num_sequences = num_decodes + chunk_len, num_decodes + 1
    lens = torch.ones(num_sequences, dtype=torch.int32, device=device)
    lens[-1] = chunk_len
    starts = torch.zeros(num_sequences + 1, dtype=torch.int32, device=device)
    starts[1:] = lens.cumsum(0)
    blocks = -(-sizes.session_len // sizes.block_size)
    metadata = PagedMetadata(
        slot_mapping=torch.full((num_tokens,), -1, dtype=torch.int64, device=device),
        block_tables=torch.zeros(num_sequences, blocks, dtype=torch.int32, device=device),
        table_rows=torch.arange(num_sequences, dtype=torch.int32, device=device),
        context_lens=lens,
        query_starts=starts,
        num_decodes=num_decodes,
        max_chunk_len=chunk_len,
    )
    positions = torch.zeros(num_tokens, dtype=torch.int64, device=device)
    num_axes = 2 if decoder.usual_context is not None else decoder.num_position_axes
    if num_axes > 1:
        positions = positions.expand(num_axes, -1)
    rows = torch.arange(num_tokens - num_sequences, num_tokens, device=device)
    embeds = decoder.embed(torch.zeros(num_tokens, dtype=torch.int64, device=device))
    hidden = decoder(embeds, positions, rows, caches, metadata)
    sequences = [_sampled(index) for index in range(num_sequences)]
    drawer = make_drawer(
        has_triton=True,
        num_rows=num_sequences,
        vocab_size=decoder.vocab_size,
        device=device,
        logprobs_mode=None,
    )
    for row, sequence in enumerate(sequences):
        drawer.admit(row, sequence)
    table_rows = torch.arange(num_sequences, device=device)
    drawer.draw(decoder.logits(hidden), sequences, table_rows, torch.ones_like(table_rows))


def _sampled(request_id: int) -> Sequence:
    """Who asks for what takes most room: a draw among all tokens, their logits edited."""
    generation = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=0.9, repetition_penalty=1.1
    )
    request = Request(request_id, (0,), (), generation, seed=0)
    return Sequence(request, max_num_tokens=2, stop_token_ids=frozenset())
