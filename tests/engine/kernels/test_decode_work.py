"""Every page in view is in exactly one item, and no worker has more than its share."""

import random
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from vlmflow_engine.kernels.decode_work import (
    MAX_SPLITS,
    SPLIT_TOKENS,
    DecodeWork,
    decode_work,
    decode_work_reference,
    num_items,
)
from vlmflow_engine.kernels.paged_metadata import PagedMetadata

PAGE = 16
LENGTHS = {
    "one": [131],
    "awkward": [0, 1, PAGE - 1, PAGE, PAGE + 1, 131],
    "all padded": [0, 0, 0],
    "padded between": [40, 0, 0, 1, 0, 300, 0],
    "one page each": [3] * 9,
    "long": [20_000, 17, 8192, 8193],
}
WINDOWS = (None, 1, PAGE, PAGE + 3, 700)
WORKERS = (1, 3, 7)

Item = tuple[int, int, int, range, bool]  # sequence, row of the table, length, pages, is whole


def step(lengths: list[int], *, is_invariant: bool) -> PagedMetadata:
    count = len(lengths)
    return PagedMetadata(
        slot_mapping=torch.zeros(count, dtype=torch.int64),
        block_tables=torch.zeros(2 * count, -(-max(lengths) // PAGE) or 1, dtype=torch.int32),
        table_rows=torch.arange(count, dtype=torch.int32).flip(0) * 2,
        context_lens=torch.tensor(lengths, dtype=torch.int32),
        query_starts=torch.arange(count + 1, dtype=torch.int32),
        num_decodes=count,
        max_chunk_len=0,
        is_invariant=is_invariant,
    )


def items_of(work: DecodeWork, ends: Tensor) -> list[list[Item]]:
    """The items of each worker or sequence; those without a page left out."""
    found = []
    for first, end in ends.tolist():
        fields = [work.items[item].tolist() for item in range(first, end)]
        found.append([(s, t, n, range(a, b), bool(w)) for s, t, n, a, b, w in fields if a < b])
    return found


def pages_in_view(length: int, window: int | None) -> list[int]:
    first = 0 if window is None else max(length - window, 0)
    return sorted({token // PAGE for token in range(first, length)})


def random_lengths(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.choice([0, 1, 16, 17, rng.randrange(2000)]) for _ in range(rng.randrange(1, 40))]


CASES = [(name, lengths) for name, lengths in LENGTHS.items()]
CASES += [(f"random {seed}", random_lengths(seed)) for seed in range(3)]


EACH_STEP = pytest.mark.parametrize(
    "lengths", [case[1] for case in CASES], ids=[case[0] for case in CASES]
)
BOTH_WAYS = pytest.mark.parametrize("is_invariant", [False, True], ids=["equal", "fixed"])


@BOTH_WAYS
@EACH_STEP
def test_the_kernel_makes_the_list_of_the_reference(lengths, is_invariant):
    for window, num_workers in ((None, 3), (PAGE + 3, 2)):
        made, expected = (
            make(
                step(lengths, is_invariant=is_invariant),
                block_size=PAGE,
                window=window,
                num_workers=num_workers,
            )
            for make in (decode_work, decode_work_reference)
        )
        assert made.items.shape == expected.items.shape
        for ends, expected_ends in (
            (made.worker_items, expected.worker_items),
            (made.sequence_items, expected.sequence_items),
        ):
            some = expected_ends[:, 1] > 0
            assert torch.equal(ends[some], expected_ends[some])
            assert items_of(made, ends) == items_of(expected, expected_ends)


@BOTH_WAYS
@EACH_STEP
def test_each_page_in_view_is_some_workers_and_only_once(lengths, is_invariant):
    metadata = step(lengths, is_invariant=is_invariant)
    for window, num_workers in product(WINDOWS, WORKERS):
        work = decode_work_reference(
            metadata, block_size=PAGE, window=window, num_workers=num_workers
        )
        of_workers = items_of(work, work.worker_items)
        of_sequences = items_of(work, work.sequence_items)
        assert len(of_workers) == num_workers and len(of_sequences) == len(lengths)
        assert sorted(map(str, sum(of_workers, []))) == sorted(map(str, sum(of_sequences, [])))
        for sequence, (length, items) in enumerate(zip(lengths, of_sequences, strict=True)):
            # In order: the merge depends on it.
            pages = [page for item in items for page in item[3]]
            assert pages == pages_in_view(length, window)
            for item in items:
                assert item[:3] == (sequence, int(metadata.table_rows[sequence]), length)
                assert item[4] == (len(items) == 1)


@BOTH_WAYS
@EACH_STEP
def test_shares_are_equal_but_for_the_last(lengths, is_invariant):
    metadata = step(lengths, is_invariant=is_invariant)
    for num_workers in WORKERS:
        work = decode_work_reference(
            metadata, block_size=PAGE, window=None, num_workers=num_workers
        )
        shares = [
            len(items) if is_invariant else sum(len(item[3]) for item in items)
            for items in items_of(work, work.worker_items)
        ]
        most = -(-sum(shares) // num_workers)
        busy = [share for share in shares if share]
        assert all(share == most for share in busy[:-1])
        assert all(share <= most for share in busy)


def test_a_sequence_is_split_by_its_own_length_alone():
    for length in (SPLIT_TOKENS, SPLIT_TOKENS + 1, 8193):
        for window in (None,) if length < 8193 else (None, 700):
            cuts = []
            for lengths, place in (([length], 0), ([3, 0, 9000, length, 700], 3)):
                for num_workers in (1, 5):
                    work = decode_work(
                        step(lengths, is_invariant=True),
                        block_size=PAGE,
                        window=window,
                        num_workers=num_workers,
                    )
                    items = items_of(work, work.sequence_items)[place]
                    cuts.append([item[3] for item in items])
            assert all(cut == cuts[0] for cut in cuts)
            assert len(cuts[0]) <= MAX_SPLITS


def test_layers_with_the_same_window_share_a_list_of_the_same_size_in_every_step():
    metadata = step([40, 700, 3], is_invariant=False)

    def make(window: int | None) -> DecodeWork:
        return decode_work(metadata, block_size=PAGE, window=window, num_workers=2)

    assert make(None) is make(None)
    assert make(32) is not make(None)
    fresh = replace(metadata, context_lens=torch.zeros(3, dtype=torch.int32), shared={})
    assert num_items(fresh, PAGE, 2) == len(make(None).items) == 5
