"""What the engine counts: one `StepStats` a step, summed up in `EngineStats`."""

from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True, slots=True)
class StepStats:
    """One step."""

    num_prefill_tokens: int
    num_decode_tokens: int
    num_encoded_images: int
    num_running: int
    num_waiting: int
    num_preempted: int
    kv_usage: float  # share of the KV blocks that sequences hold
    vision_seconds: float  # of the step, on encoding images


@dataclass(slots=True)
class EngineStats:
    """Totals since the start, and the last step's gauges."""

    num_steps: int = 0
    num_prompt_tokens: int = 0  # of admitted requests, cached ones included
    num_prefill_tokens: int = 0  # computed, recomputation after a preemption included
    num_output_tokens: int = 0
    num_encoded_images: int = 0
    num_preemptions: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    encoder_queries: int = 0
    encoder_hits: int = 0
    num_finished: int = 0
    num_failed: int = 0
    busy_seconds: float = 0.0  # in steps: the sum of the next three
    vision_seconds: float = 0.0  # on encoding images
    # What is left of a step is shared out by its tokens. In a step that mixes both this is too
    # little for decode, whose tokens are the dearer ones.
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    preprocess_wait_seconds: float = 0.0  # idle, while prompts were being prepared
    sum_running: int = 0  # over steps: divided by num_steps the mean batch
    num_running: int = 0
    num_waiting: int = 0
    kv_usage: float = 0.0
    max_batch_size: int = 0

    def record(self, step: StepStats, seconds: float) -> None:
        """Add a step."""
        self.num_steps += 1
        self.busy_seconds += seconds
        vision = min(step.vision_seconds, seconds)
        num_tokens = step.num_prefill_tokens + step.num_decode_tokens
        decode = (seconds - vision) * (step.num_decode_tokens / num_tokens if num_tokens else 0.0)
        self.vision_seconds += vision
        self.decode_seconds += decode
        self.prefill_seconds += seconds - vision - decode
        self.num_prefill_tokens += step.num_prefill_tokens
        self.num_encoded_images += step.num_encoded_images
        self.num_preemptions += step.num_preempted
        self.sum_running += step.num_running
        self.num_running = step.num_running
        self.num_waiting = step.num_waiting
        self.kv_usage = step.kv_usage

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(item.name for item in fields(cls))
