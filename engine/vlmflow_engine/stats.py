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
    """Totals since the start, and the last step's gauges. It goes on counting while it is read."""

    num_steps: int = 0  # passes of the model
    num_prompt_tokens: int = 0  # of admitted requests, cached ones included
    num_prefill_tokens: int = 0  # computed, recomputation after a preemption included
    num_output_tokens: int = 0  # generated
    num_encoded_images: int = 0  # that went through the vision tower
    num_preemptions: int = 0  # sequences that had to make room and begin again
    prefix_query_tokens: int = 0  # looked up in the prefix cache
    prefix_hit_tokens: int = 0  # found there
    encoder_queries: int = 0  # images looked up in the encoder cache
    encoder_hits: int = 0  # found there
    num_finished: int = 0  # answers
    num_failed: int = 0  # prompts that failed or were taken back
    busy_seconds: float = 0.0  # in steps: the sum of the next three
    vision_seconds: float = 0.0  # on encoding images
    # What is left of a step is shared out by its tokens. In a step that mixes both this is too
    # little for decode, whose tokens are the dearer ones.
    prefill_seconds: float = 0.0  # on prompts
    decode_seconds: float = 0.0  # on answers
    preprocess_wait_seconds: float = 0.0  # idle, while prompts were being prepared
    sum_running: int = 0  # over steps: divided by num_steps the mean batch
    num_running: int = 0  # sequences in the last step
    num_waiting: int = 0  # that had to wait then
    kv_usage: float = 0.0  # share of the KV blocks that sequences held then
    max_batch_size: int = 0  # the most there can be in a step

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
        """All counts by name, as they are now."""
        return asdict(self)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all counts."""
        return tuple(item.name for item in fields(cls))
