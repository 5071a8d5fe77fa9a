"""What planning a step costs: the scheduler with 256 live sequences, and no model.

    python -m benchmarks.scheduler

Every sequence asks about an image of its own and decodes; its tokens come from nowhere. Counted
are `schedule` and `advance`, the block manager and prefix hashes included: all that the engine does
in Python before and after a step to know who is in it. CPU time, so that neighbours do not count.
"""

import random
import statistics
import time
from collections.abc import Iterator
from hashlib import sha256

import numpy as np

from benchmarks.kept_runs import Measurement
from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.request import ImageInput, Request
from vlmflow_engine.scheduler.block_manager import BlockManager
from vlmflow_engine.scheduler.encoder_cache import EncoderCache
from vlmflow_engine.scheduler.scheduler import Scheduler
from vlmflow_engine.sequence import Sequence

NUM_LIVE = 256
_NUM_ROWS = 576  # of an image
_NUM_NEW_TOKENS = 200
_BLOCK_SIZE = 16
_PIXELS = np.zeros((1, 1, 3), np.uint8)


def main() -> None:
    print("\n".join(describe(measure())))


def measure() -> Measurement:
    """Milliseconds a step, of steps in which all sequences decode, and of those with prefill."""
    rng = random.Random(0)
    blocks = BlockManager(num_blocks=NUM_LIVE * 64, block_size=_BLOCK_SIZE)
    scheduler = Scheduler(
        blocks,
        EncoderCache(NUM_LIVE * _NUM_ROWS),
        max_batch_size=NUM_LIVE,
        max_num_tokens=2048,
    )
    for number in range(NUM_LIVE):
        scheduler.add(_sequence(number, rng))
    decode, prefill = [], []
    while scheduler.has_unfinished:
        start = time.process_time()
        plan = scheduler.schedule()
        scheduler.advance(plan)
        seconds = time.process_time() - start
        is_decode = all(item.is_decode for item in plan.scheduled)
        if is_decode and len(plan.scheduled) == NUM_LIVE:
            decode.append(seconds)
        elif not is_decode:
            prefill.append(seconds)
        for sequence in plan.sampled:
            sequence.append(rng.randrange(3, 1000))
            if sequence.finish_reason is not None:
                scheduler.finish(sequence)
    return {
        "num_live": NUM_LIVE,
        "num_steps": len(decode),
        "decode_ms": statistics.median(decode) * 1000,
        "decode_p99_ms": sorted(decode)[int(0.99 * len(decode))] * 1000,
        "prefill_ms": statistics.median(prefill) * 1000,
    }


def describe(found: Measurement) -> Iterator[str]:
    yield "## What planning a step costs"
    yield ""
    yield (
        f"With {found['num_live']} live sequences: {found['decode_ms']:.2f} ms a step of decode "
        f"(99 % of {found['num_steps']} steps within {found['decode_p99_ms']:.2f} ms), "
        f"{found['prefill_ms']:.2f} ms a step that has prefill in it."
    )
    yield ""


def _sequence(number: int, rng: random.Random) -> Sequence:
    """A prompt of an image and some text; all prompts live until the last is prefilled."""
    text = [rng.randrange(3, 1000) for _ in range(rng.randint(10, 60))]
    image = ImageInput(sha256(str(number).encode()).digest(), _PIXELS, 1, _NUM_ROWS)
    request = Request(
        request_id=number,
        prompt_token_ids=(1, *[0] * _NUM_ROWS, *text),
        images=(image,),
        generation=GenerationConfig(max_new_tokens=_NUM_NEW_TOKENS, ignore_eos=True),
        seed=0,
        adapter_name=None,
    )
    length = len(request.prompt_token_ids) + _NUM_NEW_TOKENS
    return Sequence(request, max_num_tokens=length, stop_token_ids=frozenset())


if __name__ == "__main__":
    main()
