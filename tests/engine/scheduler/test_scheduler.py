"""What a step holds, who waits, who is sent away."""

import pytest

from tests.engine.scheduler.sequences import make_image, make_sequence
from vlmflow_engine.plan import StepPlan
from vlmflow_engine.scheduler.block_manager import BlockManager
from vlmflow_engine.scheduler.encoder_cache import EncoderCache
from vlmflow_engine.scheduler.scheduler import Scheduler


def make_scheduler(
    *, num_blocks=64, block_size=4, rows=64, batch=8, tokens=32, caching=True
) -> Scheduler:
    return Scheduler(
        BlockManager(num_blocks=num_blocks, block_size=block_size, enable_prefix_caching=caching),
        EncoderCache(rows),
        max_batch_size=batch,
        max_num_tokens=tokens,
    )


def run_step(scheduler: Scheduler, token: int = 99) -> StepPlan:
    """Plan a step and do what the engine does when it was carried out."""
    plan = scheduler.schedule()
    sampled = plan.sampled
    scheduler.advance(plan)
    for sequence in sampled:
        sequence.append(token)
        if sequence.finish_reason is not None:
            scheduler.finish(sequence)
    return plan


def spans(plan: StepPlan) -> list[tuple[int, int]]:
    return [(item.start, item.end) for item in plan.scheduled]


def test_a_long_prompt_is_computed_in_chunks_beside_running_answers():
    scheduler = make_scheduler(tokens=10)
    short, long = make_sequence([1] * 3), make_sequence([2] * 20)
    scheduler.add(short)
    scheduler.add(long)
    assert spans(run_step(scheduler)) == [(0, 3), (0, 7)]
    assert spans(run_step(scheduler)) == [(3, 4), (7, 16)]
    assert spans(run_step(scheduler)) == [(4, 5), (16, 20)]
    assert spans(run_step(scheduler)) == [(5, 6), (20, 21)]


def test_no_token_is_sampled_before_the_prompt_is_computed():
    scheduler = make_scheduler(tokens=4)
    sequence = make_sequence([1] * 9)
    scheduler.add(sequence)
    assert [run_step(scheduler).sampled for _ in range(2)] == [[], []]
    assert run_step(scheduler).sampled == [sequence]


def test_no_more_sequences_run_than_the_batch_allows():
    scheduler = make_scheduler(batch=2)
    for index in range(5):
        scheduler.add(make_sequence([index] * 3, max_new_tokens=2))
    assert len(run_step(scheduler).scheduled) == 2
    assert len(scheduler.waiting) == 3


def test_equal_prompts_of_one_step_are_computed_once():
    scheduler = make_scheduler()
    for _ in range(3):
        scheduler.add(make_sequence(list(range(10))))
    assert spans(run_step(scheduler)) == [(0, 10), (8, 10), (8, 10)]


@pytest.mark.parametrize("tokens", [7, 32, 500])
@pytest.mark.parametrize("is_interleaved", [False, True])
def test_the_prefix_of_a_shared_image_is_computed_once(tokens, is_interleaved):
    """However small a step, and also where the questions about an image lie far apart."""
    scheduler = make_scheduler(num_blocks=200, tokens=tokens, batch=6)
    names, num_questions, question = ("a", "b", "c"), 5, [2, 3]
    pairs = [(name, number) for name in names for number in range(num_questions)]
    for name, number in sorted(pairs, key=lambda pair: pair[1]) if is_interleaved else pairs:
        image = make_image(name, 4, 20)
        scheduler.add(make_sequence([1] * 4 + [0] * 20 + [9 + number, *question], [image]))
    num_prefilled, encoded = 0, []
    while scheduler.has_unfinished:
        plan = run_step(scheduler)
        num_prefilled += sum(i.end - i.start for i in plan.scheduled if not i.is_decode)
        encoded += plan.encode
    # The words before the images are the same in all, the images' 20 tokens in each one's five.
    assert num_prefilled == 4 + len(names) * (20 + num_questions * 3)
    assert len(encoded) == len(set(encoded)) == len(names)


def test_the_youngest_is_preempted_when_blocks_run_out_and_loses_nothing():
    scheduler = make_scheduler(num_blocks=4, caching=False)
    old, young = make_sequence([1] * 7), make_sequence([2] * 7)
    scheduler.add(old)
    scheduler.add(young)
    run_step(scheduler)  # both hold two full blocks once their eighth token is stored
    run_step(scheduler)
    plan = run_step(scheduler)
    assert plan.preempted == [young]
    assert [item.sequence for item in plan.scheduled] == [old]
    assert young.block_ids == [] and young.num_computed_tokens == 0
    assert young.num_output_tokens == 2
    while scheduler.has_unfinished:
        run_step(scheduler)
    assert young.num_output_tokens == 8 and old.num_output_tokens == 8
    assert scheduler.block_manager.num_free_blocks == 4


def test_a_preempted_sequence_finds_its_blocks_in_the_prefix_cache():
    # The pool is one block short, so the young one is sent away for a single block.
    scheduler = make_scheduler(num_blocks=5)
    old, young = make_sequence([1] * 7, max_new_tokens=3), make_sequence([2] * 7)
    scheduler.add(old)
    scheduler.add(young)
    preempted = False
    while not young.finish_reason:
        plan = run_step(scheduler)
        preempted |= young in plan.preempted
    assert preempted
    assert scheduler._stats.prefix_hit_tokens > 0


def test_a_prompt_waits_until_all_of_it_finds_room():
    scheduler = make_scheduler(num_blocks=4, tokens=4, caching=False)
    first, second = make_sequence([1] * 12, max_new_tokens=2), make_sequence([2] * 8)
    scheduler.add(first)
    scheduler.add(second)
    assert [item.sequence for item in run_step(scheduler).scheduled] == [first]
    assert list(scheduler.waiting) == [second]


def test_an_image_asked_about_many_times_is_encoded_once():
    scheduler = make_scheduler()
    for question in range(4):
        tokens = [1, *[0] * 6, 5 + question]
        scheduler.add(make_sequence(tokens, [make_image("cat", 1, 6)]))
    plans = [run_step(scheduler) for _ in range(3)]
    assert sum(len(plan.encode) for plan in plans) == 1
    stats = scheduler._stats
    # The prefix cache gives the others the first block; the rest of the image is a cache hit.
    assert (stats.encoder_queries, stats.encoder_hits) == (4, 3)


def test_a_chunk_stops_before_an_image_that_finds_no_room():
    scheduler = make_scheduler(rows=6)
    one = make_sequence([0] * 6 + [1] * 4, [make_image("a", 0, 6)])
    two = make_sequence([2] * 5 + [0] * 6 + [1], [make_image("b", 5, 6)])
    scheduler.add(one)
    scheduler.add(two)
    plan = run_step(scheduler)
    assert spans(plan) == [(0, 10), (0, 5)]
    plan = run_step(scheduler)
    assert spans(plan) == [(10, 11), (5, 12)]
    assert len(plan.evicted) == 1 and len(plan.encode) == 1


def test_a_partly_computed_image_is_kept_until_its_end_is_behind():
    scheduler = make_scheduler(rows=8, tokens=4)
    sequence = make_sequence([0] * 8 + [1], [make_image("a", 0, 8)])
    scheduler.add(sequence)
    run_step(scheduler)
    assert not scheduler.encoder_cache.has_room(1)
    run_step(scheduler)
    assert scheduler.encoder_cache.has_room(8)


def test_a_cached_prefix_with_the_whole_image_needs_no_encoding():
    scheduler = make_scheduler(rows=8)
    first = make_sequence([0] * 8 + [1, 2], [make_image("a", 0, 8)], max_new_tokens=1)
    scheduler.add(first)
    run_step(scheduler)
    scheduler.encoder_cache.clear()
    second = make_sequence([0] * 8 + [3, 4], [make_image("a", 0, 8)])
    scheduler.add(second)
    plan = run_step(scheduler)
    assert spans(plan) == [(8, 10)] and not plan.encode


def test_who_waits_for_encoder_rows_goes_on_when_their_holder_is_sent_away():
    scheduler = make_scheduler(num_blocks=4, block_size=5, rows=6, batch=2, tokens=4, caching=False)
    old = make_sequence([1] * 8 + [0] * 6 + [1], [make_image("a", 8, 6)], max_new_tokens=1)
    young = make_sequence([1] + [0] * 6 + [2], [make_image("b", 1, 6)], max_new_tokens=1)
    scheduler.add(old)
    scheduler.add(young)
    plans = []
    while scheduler.has_unfinished:
        plans.append(run_step(scheduler))
        assert plans[-1].scheduled, "a step without progress"
    assert old.is_finished and young.is_finished


def test_an_aborted_waiting_sequence_leaves_the_queue():
    scheduler = make_scheduler()
    sequence = make_sequence([1, 2])
    scheduler.add(sequence)
    scheduler.finish(sequence)
    assert sequence.is_finished and not scheduler.has_unfinished
    assert scheduler.schedule().scheduled == []
