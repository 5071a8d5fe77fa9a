"""Random loads on tiny pools, with a memory of our own as the oracle.

The memory stands for the KV cache: carrying out a plan writes into each slot what a model would
have computed there, a fingerprint of all the tokens and image rows up to that position, and then
reads every slot that a scheduled sequence attends to. A block that two own, a shared block that is
overwritten, a wrong prefix hit or a stale block all show up as a wrong fingerprint.
"""

from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.scheduler.sequences import make_image, make_sequence
from vlmflow_engine.plan import ScheduledSequence, StepPlan
from vlmflow_engine.scheduler.block_manager import BlockManager
from vlmflow_engine.scheduler.encoder_cache import EncoderCache
from vlmflow_engine.scheduler.scheduler import Scheduler
from vlmflow_engine.sequence import Sequence


@dataclass
class SimulatedDevice:
    """Carries plans out on dictionaries and asserts what a real device would get wrong."""

    block_size: int
    slots: dict[int, int] = field(default_factory=dict)  # slot -> fingerprint
    embeddings: set[bytes] = field(default_factory=set)
    last_tokens: dict[int, int] = field(default_factory=dict)  # drawn, by request id

    def execute(self, plan: StepPlan) -> None:
        for name in plan.evicted:
            self.embeddings.remove(name)
        for name in plan.encode:
            assert name not in self.embeddings, "an image is encoded twice"
            self.embeddings.add(name)
        written: set[int] = set()
        for item in plan.scheduled:
            marks = self._fingerprints(item)
            for position in range(item.start, item.end):
                slot = self._slot(item.sequence, position)
                assert slot not in written, "two sequences write one slot in one step"
                written.add(slot)
                self.slots[slot] = marks[position]
            for image in item.sequence.images_within(item.start, item.end):
                assert image.content_hash in self.embeddings, "an image is read but not encoded"
        for item in plan.scheduled:
            marks = self._fingerprints(item)
            seen = [self.slots[self._slot(item.sequence, p)] for p in range(item.end)]
            assert seen == marks, "a sequence attends to what is not its own"

        for item in plan.scheduled:
            if item.is_sampled:
                # It depends on the sequence, so that answers of equal prompts part ways.
                request_id = item.sequence.request.request_id
                self.last_tokens[request_id] = 1 + (item.end * 7 + request_id) % 3

    def _fingerprints(self, item: ScheduledSequence) -> list[int]:
        tokens = list(item.sequence.token_ids)
        if item.sequence.num_pending:  # the host does not know it yet
            tokens.append(self.last_tokens[item.sequence.request.request_id])
        return fingerprints(item.sequence, tokens[: item.end])

    def _slot(self, sequence: Sequence, position: int) -> int:
        block_id = sequence.block_ids[position // self.block_size]
        return block_id * self.block_size + position % self.block_size


def fingerprints(sequence: Sequence, tokens: list[int]) -> list[int]:
    """What the KV of each position depends on: all tokens and image rows up to it."""
    rows: dict[int, tuple[bytes, int]] = {}
    for image in sequence.request.images:
        for row in range(image.num_tokens):
            rows[image.offset + row] = (image.content_hash, row)
    marks, mark = [], 0
    for position, token in enumerate(tokens):
        mark = hash((mark, token, rows.get(position)))
        marks.append(mark)
    return marks


prompts = st.lists(
    st.one_of(
        st.integers(1, 3),  # few tokens, so that prefixes coincide
        st.tuples(st.sampled_from("abc"), st.integers(1, 7)),  # an image of so many rows
    ),
    min_size=1,
    max_size=12,
)


def build(parts: list, max_new_tokens: int) -> Sequence:
    tokens, images = [], []
    for part in parts:
        if isinstance(part, int):
            tokens.append(part)
        else:
            name, num_rows = part
            images.append(make_image(f"{name}{num_rows}", len(tokens), num_rows))
            tokens += [0] * num_rows
    return make_sequence(tokens, images, max_new_tokens=max_new_tokens)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_load_is_computed_rightly_within_its_budgets_and_leaks_nothing(data):
    block_size = data.draw(st.sampled_from([1, 2, 4, 5]), "block_size")
    max_num_tokens = data.draw(st.integers(1, 24), "tokens a step")
    max_batch_size = data.draw(st.integers(1, 5), "batch")
    caching = data.draw(st.booleans(), "prefix caching")
    is_async = data.draw(st.booleans(), "tokens come home one step late")
    sequences = [
        build(parts, max_new_tokens)
        for parts, max_new_tokens in data.draw(
            st.lists(st.tuples(prompts, st.integers(1, 9)), min_size=1, max_size=8), "load"
        )
    ]
    # As tight as can be: the largest sequence and the largest image just fit.
    longest = max(sequence.max_num_tokens for sequence in sequences)
    num_blocks = -(-longest // block_size) + data.draw(st.integers(0, 6), "spare blocks")
    largest = max((i.num_tokens for s in sequences for i in s.request.images), default=1)
    capacity = largest + data.draw(st.integers(0, 6), "spare rows")
    blocks = BlockManager(
        num_blocks=num_blocks, block_size=block_size, enable_prefix_caching=caching
    )
    scheduler = Scheduler(
        blocks,
        EncoderCache(capacity),
        max_batch_size=max_batch_size,
        max_num_tokens=max_num_tokens,
    )
    device = SimulatedDevice(block_size)
    arrivals = list(sequences)
    total = sum(sequence.max_num_tokens for sequence in sequences)
    launched: list[tuple[Sequence, int]] | None = None  # what was drawn and is not home
    for num_steps in range(100_000):
        while arrivals and (not scheduler.has_unfinished or data.draw(st.booleans(), "arrives")):
            scheduler.add(arrivals.pop())
        if not scheduler.has_unfinished:
            break
        plan = scheduler.schedule()
        assert plan.scheduled or launched, "a step without progress"
        assert plan.num_tokens <= max_num_tokens
        assert len(plan.scheduled) <= max_batch_size
        assert scheduler.encoder_cache.num_rows <= capacity
        assert not set(map(id, plan.preempted)) & {id(i.sequence) for i in plan.scheduled}
        check_ownership(blocks, scheduler, num_blocks)
        device.execute(plan)
        assert device.embeddings == set(scheduler.encoder_cache._rows)
        scheduler.advance(plan)
        drawn = [(s, device.last_tokens[s.request.request_id]) for s in plan.sampled]
        for sequence, _ in drawn:
            sequence.num_pending += 1
        if is_async:
            launched, drawn = drawn, launched or []
        settle(scheduler, drawn)
        assert num_steps < 50 * total, "no end in sight"
    for sequence in sequences:
        assert sequence.is_finished
        assert sequence.num_tokens == sequence.max_num_tokens
    assert blocks.num_free_blocks == num_blocks
    assert all(count == 0 for count in blocks._reference_counts)
    assert scheduler.encoder_cache.has_room(capacity)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_aborts_and_failed_steps_leave_nothing_behind(data):
    blocks = BlockManager(num_blocks=16, block_size=4)
    scheduler = Scheduler(blocks, EncoderCache(12), max_batch_size=4, max_num_tokens=16)
    device = SimulatedDevice(4)
    sequences = [
        build(parts, 6) for parts in data.draw(st.lists(prompts, min_size=2, max_size=8), "load")
    ]
    sequences = [s for s in sequences if s.max_num_tokens <= 64]
    for sequence in sequences:
        scheduler.add(sequence)
    while scheduler.has_unfinished:
        plan = scheduler.schedule()
        event = data.draw(st.sampled_from(["step", "step", "step", "fail", "abort"]), "event")
        if event == "fail":  # what Engine.abort_step does
            for sequence in list(scheduler.running):
                scheduler.finish(sequence)
            scheduler.forget_caches()
            device = SimulatedDevice(4)
            continue
        device.execute(plan)
        sampled = plan.sampled
        scheduler.advance(plan)
        for sequence in sampled:
            sequence.append(1)
            if sequence.finish_reason is not None:
                scheduler.finish(sequence)
        if event == "abort":
            unfinished = [s for s in sequences if not s.is_finished]
            if unfinished:
                scheduler.finish(data.draw(st.sampled_from(unfinished), "aborted"))
    assert blocks.num_free_blocks == 16
    assert scheduler.encoder_cache.has_room(12)


def settle(scheduler: Scheduler, drawn: list[tuple[Sequence, int]]) -> None:
    """Bring tokens home; who ended meanwhile has no use for his."""
    for sequence, token in drawn:
        sequence.num_pending -= 1
        if not sequence.is_finished:
            sequence.append(token)
            if sequence.finish_reason is not None:
                scheduler.finish(sequence)


def check_ownership(blocks: BlockManager, scheduler: Scheduler, num_blocks: int) -> None:
    """Reference counts are the number of owners; free and held blocks are all there are."""
    owners = [0] * num_blocks
    for sequence in scheduler.running:
        for block_id in sequence.block_ids:
            owners[block_id] += 1
    for sequence in scheduler.waiting:
        assert not sequence.block_ids
    assert owners == blocks._reference_counts
    assert {b for b in range(num_blocks) if not owners[b]} == set(blocks._free)
