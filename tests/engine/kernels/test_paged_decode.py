"""One token a sequence over pages, against a float64 softmax over what is stored."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.engine.kernels.kv_formats import FORMATS, paged_rows, poison_slots, read_back
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache, PagedRows
from vlmflow_engine.kernels.paged_decode import paged_decode, paged_decode_reference
from vlmflow_engine.kernels.paged_metadata import PagedMetadata

PAGE = 16
COMPANY = (1100, 5, 0, 600, 512, 513, 33)  # of whom some are split at 512 tokens
LENGTHS = (PAGE + 1, 0, 131, 1, PAGE - 1, PAGE, 0)
# Of the result, whose elements are about one. The kernel's own dots are float32 here, so bfloat16
# is what the result is rounded (here: cut) to.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Step:
    """A step of decodes; all that they do not see holds NaN."""

    q: Tensor
    cache: LayerKVCache
    metadata: PagedMetadata

    def run(self, *, window: int | None = None, num_sms: int = 3) -> Tensor:
        return paged_decode(
            self.q, self.cache, self.metadata, scale=self.scale, window=window, num_sms=num_sms
        )

    def expected(self, *, window: int | None = None) -> Tensor:
        """Without the poison: what is not seen is not read."""
        cache = LayerKVCache(
            *(PagedRows(read_back(rows)) for rows in (self.cache.key, self.cache.value))
        )
        return paged_decode_reference(self.q, cache, self.metadata, scale=self.scale, window=window)

    @property
    def scale(self) -> float:
        return 1.5 * self.q.shape[-1] ** -0.5

    def only(self, sequence: int) -> "Step":
        """One sequence of it, alone."""
        one = slice(sequence, sequence + 1)
        metadata = replace(
            self.metadata,
            table_rows=self.metadata.table_rows[one],
            context_lens=self.metadata.context_lens[one],
            num_decodes=1,
            shared={},
        )
        return replace(self, q=self.q[one], metadata=metadata)


def step(
    lengths: tuple[int, ...] = LENGTHS,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    page: int = PAGE,
    dtype: torch.dtype = torch.float32,
    format: str = "rows",
    window: int | None = None,
    is_invariant: bool = False,
) -> Step:
    generator = torch.Generator().manual_seed(len(lengths) + head_dim)
    pages = [-(-length // page) for length in lengths]
    num_blocks = sum(pages) + 3
    shuffled = torch.randperm(num_blocks, generator=generator).split([*pages, 3])[:-1]
    table_rows = torch.randperm(len(lengths) + 2, generator=generator)[: len(lengths)]
    tables = torch.full((len(lengths) + 2, max(pages) + 1), num_blocks - 1, dtype=torch.int32)
    slots = [torch.empty(0, dtype=torch.int64)]
    for row, blocks, length in zip(table_rows, shuffled, lengths, strict=True):
        tables[row, : len(blocks)] = blocks.int()
        own = (blocks[:, None] * page + torch.arange(page)).flatten()[:length]
        slots.append(own[-window:] if window else own)
    unseen = torch.ones(num_blocks * page, dtype=torch.bool)
    unseen[torch.cat(slots)] = False
    stored = []
    for _ in range(2):
        x = torch.randn(num_blocks, page, kv_heads, head_dim, generator=generator) + 0.25
        rows = paged_rows(x.to(dtype), format)
        poison_slots(rows, unseen.nonzero().flatten())
        stored.append(rows)
    # Queries are part of a merged projection: their rows are wider than themselves.
    merged = torch.randn(len(lengths), heads + 2 * kv_heads, head_dim, generator=generator)
    metadata = PagedMetadata(
        slot_mapping=torch.full((len(lengths),), -1),
        block_tables=tables,
        table_rows=table_rows.int(),
        context_lens=torch.tensor(lengths, dtype=torch.int32),
        query_starts=torch.arange(len(lengths) + 1, dtype=torch.int32),
        num_decodes=len(lengths),
        max_chunk_len=0,
        is_invariant=is_invariant,
    )
    return Step(merged.to(dtype)[:, :heads], LayerKVCache(*stored), metadata)


def check(made: Step, *, window: int | None = None, num_sms: int = 3) -> None:
    tolerance = TOLERANCES[made.q.dtype]
    torch.testing.assert_close(
        made.run(window=window, num_sms=num_sms),
        made.expected(window=window),
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("heads, kv_heads", [(2, 2), (3, 1), (7, 1), (16, 2)])
def test_heads_of_a_group_share_their_keys(heads, kv_heads, dtype):
    check(step(heads=heads, kv_heads=kv_heads, dtype=dtype))


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_of_the_cache_is_read(format, head_dim):
    check(step((50, 0, PAGE), kv_heads=1, heads=2, head_dim=head_dim, format=format))


@pytest.mark.parametrize("num_sms", [1, 5, 14])
def test_any_number_of_programs_does_the_same_work(num_sms):
    check(step(), num_sms=num_sms)


@pytest.mark.parametrize("is_invariant", [False, True])
@pytest.mark.parametrize("window", [1, PAGE - 1, PAGE, PAGE + 1, 50, 1000])
def test_a_window_is_all_that_is_read(window, is_invariant):
    lengths = (67, 3, 0, 2 * PAGE)
    made = step(lengths, heads=2, kv_heads=1, window=window, is_invariant=is_invariant)
    check(made, window=window, num_sms=1)


@pytest.mark.parametrize("page", [32, 64, 128])
def test_pages_of_any_size(page):
    check(step((0, 1, page - 1, page, page + 1, 131), page=page, format="int8"), num_sms=2)


@pytest.mark.parametrize("format", FORMATS)
def test_a_sequence_alone_and_in_company_gets_bitwise_the_same(format):
    made = step(COMPANY, kv_heads=1, heads=2, page=128, format=format, is_invariant=True)
    together = made.run(num_sms=2)
    tolerance = TOLERANCES[torch.float32]
    torch.testing.assert_close(together, made.expected(), rtol=tolerance, atol=tolerance)
    for sequence in (0, 1, 3, 5):
        alone = made.only(sequence).run(num_sms=1)
        assert torch.equal(alone[0], together[sequence])


def test_equal_shares_do_depend_on_the_company():
    """Else the test above proves nothing."""
    made = step(COMPANY, kv_heads=1, heads=2, page=128)
    together = made.run(num_sms=2)
    alone = [made.only(sequence).run(num_sms=2)[0] for sequence in (0, 3)]
    assert not torch.equal(torch.stack(alone), together[[0, 3]])


def test_one_long_sequence_is_merged_from_more_items_than_are_read_at_once():
    check(step((20 * PAGE,), heads=2, kv_heads=1), num_sms=10)


def test_scores_far_apart_lose_nothing():
    made = step((131, 17))
    check(replace(made, q=made.q * 200))


def test_the_output_may_be_part_of_something_wider():
    made = step()
    wide = torch.full((len(LENGTHS), 6, 64), math.nan)
    out = paged_decode(
        made.q, made.cache, made.metadata, scale=made.scale, out=wide[:, 1:5], num_sms=2
    )
    assert out.data_ptr() == wide[:, 1:5].data_ptr()
    torch.testing.assert_close(wide[:, 1:5], made.expected(), rtol=2e-5, atol=2e-5)
    assert wide[:, [0, 5]].isnan().all()


def test_only_the_decodes_of_a_mixed_step_are_attended():
    made = step()
    mixed = replace(made.metadata, num_decodes=3, max_chunk_len=9, shared={})
    first = replace(made, q=made.q[:3], metadata=mixed)
    check(first)
    assert first.run().shape[0] == 3


def test_padded_rows_are_zeros():
    out = step((0, 20, 0)).run()
    assert not out[[0, 2]].any() and out[1].all()


def test_a_step_without_decodes_is_nothing_to_do():
    made = step((5,))
    none = replace(made, q=made.q[:0], metadata=replace(made.metadata, num_decodes=0))
    assert none.run().shape == (0, 4, 64)
