"""Notes on sequences when a step did what to them."""

import time

from vlmflow_engine.plan import StepPlan
from vlmflow_engine.sequence import Sequence, VisionTime


def stamp_times(plan: StepPlan, started_at: float, vision_seconds: float) -> None:
    """Stamp the sequences of a step that has just ended. Moments are of time.monotonic()."""
    now = time.monotonic()
    for item in plan.scheduled:
        sequence = item.sequence
        if sequence.scheduled_at is None:
            sequence.scheduled_at = started_at
        if sequence.first_token_at is None and sequence.num_output_tokens:
            sequence.first_token_at = now
        if not plan.encode:
            continue
        for image in sequence.images_within(item.start, item.end):
            if image.content_hash in plan.encode:
                _add_vision(sequence, started_at, vision_seconds, len(plan.encode))
                break


def _add_vision(sequence: Sequence, started_at: float, seconds: float, num_images: int) -> None:
    vision = sequence.vision
    if vision is None:
        sequence.vision = VisionTime(started_at, seconds, num_images)
    else:  # a prompt in chunks: its images were encoded in several steps
        vision.seconds += seconds
        vision.num_images += num_images
