"""Continuous batching with one number a sequence: how many of its known tokens are computed.

Prefill and decode are not two modes: each step hands out a token budget, first to the running
sequences (oldest first), then to waiting ones, and a prompt larger than what is left is computed
in chunks. When blocks run out the youngest running sequence is preempted: its blocks are released
and it is computed again later, mostly from the prefix cache.
"""

from collections import deque

from vlmflow_engine.plan import ScheduledSequence, StepPlan
from vlmflow_engine.scheduler.block_manager import BlockManager
from vlmflow_engine.scheduler.encoder_cache import EncoderCache
from vlmflow_engine.sequence import Sequence, SequenceStatus
from vlmflow_engine.stats import EngineStats


class Scheduler:
    """Owns the queues; writes every field of a sequence but its tokens."""

    def __init__(
        self,
        block_manager: BlockManager,
        encoder_cache: EncoderCache,
        *,
        max_batch_size: int,
        max_num_tokens: int,
        stats: EngineStats | None = None,
    ) -> None:
        self.block_manager = block_manager
        self.encoder_cache = encoder_cache
        self.max_batch_size = max_batch_size  # sequences in a step
        self.max_num_tokens = max_num_tokens  # tokens in a step
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission
        self._stats = stats or EngineStats()

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. It must fit the pool, and its images the encoder cache, by itself."""
        assert sequence.max_num_tokens <= (
            self.block_manager.num_blocks * self.block_manager.block_size
        )
        assert all(i.num_rows <= self.encoder_cache.capacity for i in sequence.request.images)
        self.waiting.append(sequence)
        self._stats.num_prompt_tokens += sequence.num_prompt_tokens

    def schedule(self) -> StepPlan:
        """Plan the next step.

        Empty only when nothing is unfinished, or all that is waits for tokens on the device.
        """
        plan = StepPlan()
        budget = self._schedule_running(plan, self.max_num_tokens)
        if plan.preempted and not plan.scheduled:
            # One waited for encoder rows that another held, who was sent away for want of blocks.
            budget = self._schedule_running(plan, budget)
        if not plan.preempted:  # who was just sent away shall not find his blocks taken
            self._schedule_waiting(plan, budget)
        return plan

    def advance(self, plan: StepPlan) -> None:
        """Note that a step was carried out: its tokens are stored, its images read."""
        for item in plan.scheduled:
            sequence = item.sequence
            sequence.num_computed_tokens = item.end
            for image in sequence.images_within(item.start, item.end):
                if image.end <= item.end:
                    self.encoder_cache.release(image.content_hash, sequence.request.request_id)

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and give back all it holds."""
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release(sequence)
        sequence.status = SequenceStatus.FINISHED

    def preempt(self, sequence: Sequence) -> None:
        """Send a running sequence back to the head of the queue, to be computed from its start."""
        self.running.remove(sequence)
        self._release(sequence)
        sequence.status = SequenceStatus.WAITING
        sequence.num_computed_tokens = 0
        sequence.num_preemptions += 1
        self.waiting.appendleft(sequence)

    def forget_caches(self) -> list[bytes]:
        """Drop all cached content after a failed step; return the embeddings to drop."""
        self.block_manager.forget_cached()
        return self.encoder_cache.clear()

    def _schedule_running(self, plan: StepPlan, budget: int) -> int:
        index = 0
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            end = self._reserve_images(plan, sequence, sequence.num_computed_tokens, budget)
            if end > sequence.num_computed_tokens and self._make_room(plan, sequence, end):
                budget -= self._plan(plan, sequence, end)
            # A preempted sequence was the last of the list, so the index is past the end then.
            index += 1
        return budget

    def _schedule_waiting(self, plan: StepPlan, budget: int) -> None:
        blocks = self.block_manager
        while self.waiting and budget > 0 and len(self.running) < self.max_batch_size:
            sequence = self.waiting[0]
            if sequence.num_pending:  # sent away while its next token was being drawn
                return
            cached = blocks.match_prefix(sequence)
            # All of the prompt must find room, not only its first chunk: else prompts that are
            # half computed push each other out for ever.
            fits = (
                blocks.num_missing_blocks(sequence, sequence.num_tokens) <= blocks.num_free_blocks
            )
            end = self._reserve_images(plan, sequence, cached, budget) if fits else cached
            if end == cached:
                self._release(sequence)
                return
            if sequence.num_preemptions == 0:
                sequence.num_cached_tokens = cached
            self._stats.prefix_query_tokens += sequence.num_tokens
            self._stats.prefix_hit_tokens += cached
            sequence.num_computed_tokens = cached
            blocks.allocate(sequence, end)
            self.waiting.popleft()
            self.running.append(sequence)
            sequence.status = SequenceStatus.RUNNING
            budget -= self._plan(plan, sequence, end)

    def _plan(self, plan: StepPlan, sequence: Sequence, end: int) -> int:
        start = sequence.num_computed_tokens
        is_sampled = end == sequence.num_drawn_tokens
        plan.scheduled.append(ScheduledSequence(sequence, start, end, is_sampled))
        self.block_manager.publish(sequence, end)
        return end - start

    def _make_room(self, plan: StepPlan, sequence: Sequence, end: int) -> bool:
        """Allocate blocks up to `end`, preempting the youngest until it works or was itself."""
        while not self.block_manager.allocate(sequence, end):
            victim = self.running[-1]
            self.preempt(victim)
            plan.preempted.append(victim)
            if victim is sequence:
                return False
        return True

    def _reserve_images(self, plan: StepPlan, sequence: Sequence, start: int, budget: int) -> int:
        """Return how far a chunk from `start` may go, its images cached or to be encoded.

        The chunk stops before the first image that finds no room in the encoder cache.
        """
        end = min(sequence.num_ready_tokens, start + budget)
        cache, request_id = self.encoder_cache, sequence.request.request_id
        for image in sequence.images_within(start, end):
            name = image.content_hash
            if cache.is_user(name, request_id):
                continue
            if name not in cache and not cache.has_room(image.num_rows):
                return max(start, image.offset)
            self._stats.encoder_queries += 1
            if name in cache:
                self._stats.encoder_hits += 1
            else:
                for evicted in cache.add(name, image.num_rows):
                    # Planned and evicted within one step: it need not be encoded at all.
                    if plan.encode.pop(evicted, None) is None:
                        plan.evicted.append(evicted)
                plan.encode[name] = image
            cache.use(name, request_id)
        return end

    def _release(self, sequence: Sequence) -> None:
        self.block_manager.release(sequence)
        for image in sequence.request.images:
            self.encoder_cache.release(image.content_hash, sequence.request.request_id)
