"""Chunks of prompts over a paged cache, in Triton's interpreter against float64."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.engine.kernels.kv_formats import FORMATS, paged_rows, poison_slots
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache
from vlmflow_engine.kernels.paged_metadata import PagedMetadata
from vlmflow_engine.kernels.paged_prefill import paged_prefill, paged_prefill_reference

PAGE = 16
# Of the result's largest element. bfloat16: probabilities and the result are truncated to 8 bits.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}
# (new tokens, tokens stored with them)
FIRST_CHUNKS = [(15, 15), (16, 16), (17, 17), (2, 2)]
LATER_CHUNKS = [(2, 17), (16, 32), (17, 18), (3, 131)]
MIXED = [(1, 131), (1, 1), (17, 17), (15, 131), (2, 2), (0, 0), (30, 31)]


@dataclass(frozen=True)
class Step:
    """Queries of a step's chunks, and a cache in which all that no sequence holds is NaN."""

    q: Tensor
    cache: LayerKVCache
    metadata: PagedMetadata

    @property
    def rows(self) -> list[slice]:
        """Each chunk's rows of q."""
        count = self.metadata.num_decodes
        starts = (self.metadata.query_starts[count:] - count).tolist()
        return [slice(*pair) for pair in zip(starts[:-1], starts[1:], strict=True)]

    def with_metadata(self, **changes: object) -> "Step":
        return replace(self, metadata=replace(self.metadata, **changes))

    def run(self, **options: object) -> Tensor:
        options = {"scale": self.q.shape[-1] ** -0.5} | options
        return paged_prefill(self.q, self.cache, self.metadata, **options)

    def expected(self, **options: object) -> Tensor:
        options = {"scale": self.q.shape[-1] ** -0.5} | options
        return paged_prefill_reference(self.q, self.cache, self.metadata, **options)


def make_step(
    lengths: list[tuple[int, int]],
    *,
    num_heads: int = 2,
    num_kv_heads: int = 1,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
    format: str = "rows",
    page: int = PAGE,
) -> Step:
    """Draw a step: decodes first, each sequence's pages shuffled, rows of the table too."""
    generator = torch.Generator().manual_seed(len(lengths) + num_heads + head_dim)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) + 0.3).to(dtype)

    counts = [-(-length // page) for _, length in lengths]
    num_blocks = sum(counts) + 3
    free = torch.randperm(num_blocks, generator=generator).tolist()
    table_rows = torch.randperm(len(lengths) + 2, generator=generator)[: len(lengths)].int()
    tables = torch.full((len(lengths) + 2, max(counts) + 1), free[0], dtype=torch.int32)
    is_used = torch.zeros(num_blocks, page, dtype=torch.bool)
    for row, count, (_, length) in zip(table_rows.tolist(), counts, lengths, strict=True):
        blocks = [free.pop() for _ in range(count)]
        tables[row, :count] = torch.tensor(blocks, dtype=torch.int32)
        for position in range(length):
            is_used[blocks[position // page], position % page] = True
    unused = (~is_used).flatten().nonzero().flatten()
    key, value = (
        paged_rows(draw(num_blocks, page, num_kv_heads, head_dim), format) for _ in range(2)
    )
    for rows in (key, value):
        poison_slots(rows, unused)
    new = [num_new for num_new, _ in lengths]
    metadata = PagedMetadata(
        slot_mapping=torch.zeros(sum(new), dtype=torch.int64),
        block_tables=tables,
        table_rows=table_rows,
        context_lens=torch.tensor([length for _, length in lengths], dtype=torch.int32),
        query_starts=torch.tensor([0, *new]).cumsum(0, dtype=torch.int32),
        num_decodes=sum(num_new == 1 for num_new in new),
        max_chunk_len=max(num_new for num_new in new),
    )
    num_rows = sum(new) - metadata.num_decodes
    return Step(draw(num_rows, num_heads, head_dim), LayerKVCache(key, value), metadata)


def assert_close(actual: Tensor, expected: Tensor, rows: list[slice]) -> None:
    tolerance = TOLERANCES[actual.dtype] * expected.abs().max().item()
    for own in rows:
        torch.testing.assert_close(actual[own], expected[own], rtol=0, atol=tolerance)


def assert_is_reference(step: Step, **options: object) -> None:
    out = torch.full(step.q.shape, math.nan, dtype=step.q.dtype)
    assert step.run(out=out, **options) is out
    assert_close(out, step.expected(**options), step.rows)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("lengths", "dtype"),
    [
        (FIRST_CHUNKS, torch.bfloat16),
        (LATER_CHUNKS, torch.bfloat16),
        (MIXED, torch.bfloat16),
        (MIXED, torch.float32),
    ],
    ids=["first", "later", "mixed", "mixed in float32"],
)
def test_chunks_attend_to_what_is_stored_before_them_and_to_themselves(lengths, format, dtype):
    assert_is_reference(make_step(lengths, format=format, dtype=dtype))


@pytest.mark.parametrize("format", FORMATS)
def test_long_chunks_have_tiles_of_one_head(format):
    lengths = [(1, 5), (131, 150), (5, 5)]
    assert_is_reference(make_step(lengths, format=format, dtype=torch.bfloat16, page=64))


@pytest.mark.parametrize(
    ("group", "num_kv_heads", "num_new_tokens"),
    [(1, 2, 20), (2, 2, 20), (3, 1, 20), (7, 2, 20), (8, 1, 20), (1, 2, 130), (3, 1, 130)],
)
def test_every_query_head_reads_its_kv_head(group, num_kv_heads, num_new_tokens):
    step = make_step(
        [(num_new_tokens, 137), (9, 9)],
        num_heads=num_kv_heads * group,
        num_kv_heads=num_kv_heads,
        dtype=torch.bfloat16,
        page=64,
    )
    assert_is_reference(step)


@pytest.mark.parametrize("format", ["rows", "int4"])
@pytest.mark.parametrize("head_dim", [8, 64, 72, 96, 128])
def test_heads_of_any_width_are_attended(head_dim, format):
    assert_is_reference(make_step([(17, 33), (3, 3)], head_dim=head_dim, format=format))


@pytest.mark.parametrize("page", [32, 64, 128])
def test_pages_of_any_size_are_walked(page):
    lengths = [(page - 1, page - 1), (page + 1, 2 * page + 1), (7, page)]
    assert_is_reference(make_step(lengths, page=page, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("window", "dtype"),
    [(window, torch.bfloat16) for window in (1, 2, 15, 16, 17, 40, 1000)] + [(20, torch.float32)],
    ids=str,
)
def test_a_window_hides_what_lies_before_it(window, dtype):
    assert_is_reference(
        make_step([(1, 9), (70, 131), (33, 33), (2, 90)], dtype=dtype), window=window
    )


def test_pages_before_the_window_are_not_read():
    step = make_step([(20, 131)])
    expected = step.expected(window=10)
    table = step.metadata.block_tables[step.metadata.table_rows[0]]
    for rows in (step.cache.key, step.cache.value):
        # The first token of the chunk is at 111 and sees back to 102.
        poison_slots(rows, (table[:6].long()[:, None] * PAGE + torch.arange(PAGE)).flatten())
        poison_slots(rows, table[6] * PAGE + torch.arange(102 - 6 * PAGE))
    assert_close(step.run(window=10), expected, step.rows)


@pytest.mark.parametrize(
    ("window", "dtype"),
    [(None, torch.bfloat16), (24, torch.bfloat16), (None, torch.float32)],
    ids=str,
)
def test_tokens_of_an_image_see_the_whole_of_it(window, dtype):
    step = make_step([(1, 12), (60, 90), (40, 40)], num_heads=1, dtype=dtype, page=32)
    # Images at 35 to 70 and 71 to 89 of the first chunk's sequence, and at 0 to 40 of the second's.
    ends = torch.cat([torch.tensor([12]), torch.arange(30, 90) + 1, torch.arange(40) + 1])
    positions = torch.cat([torch.tensor([-1]), torch.arange(30, 90), torch.full((40,), -1)])
    ends[(positions >= 35) & (positions < 70)] = 70
    ends[(positions >= 71) & (positions < 89)] = 89
    ends[61:] = 40
    step = step.with_metadata(visible_ends=ends.int())
    causal = step.with_metadata(visible_ends=None)
    assert_is_reference(step, window=window)
    difference = (step.run(window=window) - causal.run(window=window)).abs()
    assert difference[5].max() > 1e-3  # at 35
    assert not difference[:5].any()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("num_new_tokens", [5, 130])
def test_a_sequence_that_stores_nothing_gets_zeros(num_new_tokens, format):
    step = make_step([(3, 3), (num_new_tokens, num_new_tokens)], format=format)
    step = step.with_metadata(context_lens=torch.tensor([3, 0], dtype=torch.int32))
    out = torch.full(step.q.shape, math.nan)
    step.run(out=out)
    assert not out[3:].any()
    assert out[:3].isfinite().all()


def test_without_a_place_for_the_result_one_is_made():
    step = make_step(MIXED)
    out = step.run()
    assert out.shape == step.q.shape
    assert_close(out, step.expected(), step.rows)


def test_a_step_of_decodes_is_no_work():
    step = make_step([(1, 5), (1, 17)])
    assert step.run().shape == (0, 2, 16)


def test_queries_and_the_result_may_be_views():
    step = make_step(MIXED, num_heads=2)
    merged = torch.cat([step.q, step.q, step.q], dim=1)
    room = torch.full((len(step.q), 4, 16), 7.0)
    view = replace(step, q=merged[:, 2:4])
    view.run(out=room[:, 1:3])
    assert_close(room[:, 1:3], step.expected(), step.rows)
    assert (room[:, [0, 3]] == 7).all()


@pytest.fixture
def dots_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy's product of matrices, the interpreter's dot, depends on where in one a row stands."""

    def matmul(a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> np.ndarray:
        return np.einsum("ik,kj->ij", a, b).astype(dtype)

    monkeypatch.setattr(np, "matmul", matmul)


@pytest.mark.usefixtures("dots_row_by_row")
@pytest.mark.parametrize(("format", "window"), [("rows", None), ("int8", 20)])
def test_in_invariant_mode_no_company_and_no_cut_changes_a_bit(format, window):
    whole = make_step([(100, 100)], dtype=torch.bfloat16, format=format)
    whole = whole.with_metadata(is_invariant=True)
    expected = whole.run(window=window)
    first = 0
    for count in (40, 3, 57):
        piece = replace(whole, q=torch.cat([whole.q[first : first + count], whole.q[:30]]))
        piece = piece.with_metadata(
            table_rows=whole.metadata.table_rows.repeat(2),
            context_lens=torch.tensor([first + count, 30], dtype=torch.int32),
            query_starts=torch.tensor([0, count, count + 30], dtype=torch.int32),
            max_chunk_len=max(count, 30),
        )
        out = piece.run(window=window)
        assert torch.equal(out[:count], expected[first : first + count])
        assert torch.equal(out[count:], expected[:30])
        first += count


def test_scale_multiplies_the_scores():
    assert_is_reference(make_step(MIXED), scale=0.7)
