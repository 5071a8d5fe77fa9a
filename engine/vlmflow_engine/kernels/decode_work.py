"""The work of decode attention, cut into items on the GPU, once a step for all its layers.

An item is some pages of one sequence, and one worker attends to it for one KV head. Workers are as
many in every step, and each walks along its own items: what a step holds changes the lists and not
the launch, so a CUDA graph may be replayed. The sizes of the lists depend on shapes only.

Equal shares: all sequences' pages in one row are cut into one share a worker, equal but for the
last. Sequence s in the share of worker w is item s + w: items of a sequence, and of a worker, are
neighbours, and there are no more than sequences and workers together.

Fixed splits, for who wants the same output whatever else is in the step: a sequence is cut by its
own length alone, into splits of 512 tokens, or into 16 where those were more.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmflow_engine.kernels.compile_case import CompileCase
from vlmflow_engine.kernels.paged_metadata import PagedMetadata

SPLIT_TOKENS = 512
MAX_SPLITS = 16
ITEM_FIELDS = tl.constexpr(6)
_MIN_BLOCK = 32  # sequences; a warp


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """Items, and who has which. Items that nobody has hold anything."""

    # [num_items, ITEM_FIELDS] int32: sequence, its row of the block tables, its length in tokens,
    # first page, end page, whether this is all of the sequence
    items: Tensor
    worker_items: Tensor  # [num_workers, 2] int32: a worker's first item, and its end
    sequence_items: Tensor  # [num_decodes, 2] int32: a sequence's first item, and its end


def decode_work(
    metadata: PagedMetadata, *, block_size: int, window: int | None, num_workers: int
) -> DecodeWork:
    """Return the list of the step's first `num_decodes` sequences; made once, then shared.

    It is kept in `metadata.shared`: who captures a graph begins with metadata that share nothing
    yet, or the kernel that makes the list is not in the graph.

    window  tokens that a layer sees back, the last one included; None: all. Only pages in it count.
    """
    key = ("decode_work", block_size, window, num_workers)
    if key not in metadata.shared:
        metadata.shared[key] = _launch(metadata, block_size, window, num_workers)
    work: DecodeWork = metadata.shared[key]
    return work


def num_items(metadata: PagedMetadata, block_size: int, num_workers: int) -> int:
    """Return how many items there are at most."""
    if not metadata.is_invariant:
        return metadata.num_decodes + num_workers
    most = -(-metadata.block_tables.shape[1] // (SPLIT_TOKENS // block_size))
    return metadata.num_decodes * min(most, MAX_SPLITS)


def _launch(
    metadata: PagedMetadata, block_size: int, window: int | None, num_workers: int
) -> DecodeWork:
    num_decodes = metadata.num_decodes
    work = _empty(metadata, block_size, num_workers)
    kernel = _fixed_splits_kernel if metadata.is_invariant else _equal_shares_kernel
    kernel[(num_workers,)](
        metadata.context_lens,
        metadata.table_rows,
        work.items,
        work.worker_items,
        work.sequence_items,
        num_decodes,
        num_workers,
        2**31 - 1 if window is None else window,
        **_constants(num_decodes, block_size, is_invariant=metadata.is_invariant),
        num_warps=_num_warps(is_invariant=metadata.is_invariant),
    )
    return work


def _empty(metadata: PagedMetadata, block_size: int, num_workers: int) -> DecodeWork:
    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=metadata.context_lens.device)

    return DecodeWork(
        items=empty(num_items(metadata, block_size, num_workers), ITEM_FIELDS.value),
        worker_items=empty(num_workers, 2),
        sequence_items=empty(metadata.num_decodes, 2),
    )


def _constants(num_decodes: int, block_size: int, *, is_invariant: bool) -> dict[str, int]:
    # Not every small batch has a kernel of its own.
    block = max(_MIN_BLOCK, triton.next_power_of_2(num_decodes))
    constants = {"PAGE": block_size, "BLOCK": block}
    if is_invariant:
        constants |= {"SPLIT_PAGES": SPLIT_TOKENS // block_size, "MAX_SPLITS": MAX_SPLITS}
    return constants


def _num_warps(*, is_invariant: bool) -> int:
    """Of a tile of sequences and splits, a thread of 4 warps would have more than it can hold."""
    return 16 if is_invariant else 4


# One kernel for any number of sequences, see rms_norm.py.
@triton.jit(do_not_specialize=["num_sequences"])
def _equal_shares_kernel(
    # Pointers to what the step is
    context_lens_ptr,
    table_rows_ptr,
    # Pointers to the lists
    items_ptr,
    worker_items_ptr,
    sequence_items_ptr,
    # Dimensions
    num_sequences,
    num_workers,
    window,
    # Meta-parameters
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,  # at least the sequences
):
    """Program w writes the items of worker w; program 0 also writes whose they are."""
    worker = tl.program_id(0)
    sequence = tl.arange(0, BLOCK)
    is_sequence = sequence < num_sequences
    table_row = tl.load(table_rows_ptr + sequence, mask=is_sequence, other=0)
    length = tl.load(context_lens_ptr + sequence, mask=is_sequence, other=0)
    first_page, num_pages = _pages_in_view(length, window, PAGE)
    # Where each sequence lies in the row of all pages.
    row_end = tl.cumsum(num_pages, 0)
    row_start = row_end - num_pages
    total = tl.sum(num_pages, 0)
    share = tl.maximum((total + num_workers - 1) // num_workers, 1)

    begin = tl.maximum(row_start, worker * share)
    end = tl.minimum(row_end, (worker + 1) * share)
    is_mine = begin < end
    first = tl.min(tl.where(is_mine, sequence, BLOCK), 0)
    last = tl.max(tl.where(is_mine, sequence, -1), 0)
    _store_items(
        items_ptr,
        sequence + worker,
        sequence,
        table_row,
        length,
        first_page + begin - row_start,
        first_page + end - row_start,
        end - begin == num_pages,
        # Sequences without a page are among those of the worker, with nothing to do.
        (sequence >= first) & (sequence <= last),
    )
    tl.store(worker_items_ptr + 2 * worker, tl.where(last < 0, 0, first + worker))
    tl.store(worker_items_ptr + 2 * worker + 1, tl.where(last < 0, 0, last + 1 + worker))
    is_stored = is_sequence & (worker == 0)
    is_empty = num_pages == 0
    first_item = tl.where(is_empty, 0, sequence + row_start // share)
    end_item = tl.where(is_empty, 0, sequence + (row_end - 1) // share + 1)
    tl.store(sequence_items_ptr + 2 * sequence, first_item, mask=is_stored)
    tl.store(sequence_items_ptr + 2 * sequence + 1, end_item, mask=is_stored)


@triton.jit(do_not_specialize=["num_sequences"])
def _fixed_splits_kernel(
    # Pointers to what the step is
    context_lens_ptr,
    table_rows_ptr,
    # Pointers to the lists
    items_ptr,
    worker_items_ptr,
    sequence_items_ptr,
    # Dimensions
    num_sequences,
    num_workers,
    window,
    # Meta-parameters
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,  # at least the sequences
    SPLIT_PAGES: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    """Program w writes the items of worker w; program 0 also writes whose they are."""
    worker = tl.program_id(0)
    sequence = tl.arange(0, BLOCK)
    is_sequence = sequence < num_sequences
    table_row = tl.load(table_rows_ptr + sequence, mask=is_sequence, other=0)
    length = tl.load(context_lens_ptr + sequence, mask=is_sequence, other=0)
    first_page, num_pages = _pages_in_view(length, window, PAGE)
    split_pages = tl.maximum(SPLIT_PAGES, (num_pages + MAX_SPLITS - 1) // MAX_SPLITS)
    num_splits = (num_pages + split_pages - 1) // split_pages
    end_item = tl.cumsum(num_splits, 0)
    first_item = end_item - num_splits
    total = tl.sum(num_splits, 0)
    share = (total + num_workers - 1) // num_workers

    my_first = tl.minimum(worker * share, total)
    my_end = tl.minimum(my_first + share, total)
    split = tl.arange(0, MAX_SPLITS)[None, :]
    item = first_item[:, None] + split
    begin = split * split_pages[:, None]
    end = tl.minimum(begin + split_pages[:, None], num_pages[:, None])
    _store_items(
        items_ptr,
        item,
        sequence[:, None],
        table_row[:, None],
        length[:, None],
        first_page[:, None] + begin,
        first_page[:, None] + end,
        num_splits[:, None] == 1,
        (split < num_splits[:, None]) & (item >= my_first) & (item < my_end),
    )
    tl.store(worker_items_ptr + 2 * worker, my_first)
    tl.store(worker_items_ptr + 2 * worker + 1, my_end)
    is_stored = is_sequence & (worker == 0)
    tl.store(sequence_items_ptr + 2 * sequence, first_item, mask=is_stored)
    tl.store(sequence_items_ptr + 2 * sequence + 1, end_item, mask=is_stored)


@triton.jit
def _pages_in_view(length, window, PAGE: tl.constexpr):
    """Return each sequence's first page in view, and how many there are."""
    first_page = tl.maximum(length - window, 0) // PAGE
    return first_page, (length + PAGE - 1) // PAGE - first_page


@triton.jit
def _store_items(
    items_ptr, item, sequence, table_row, length, first_page, end_page, is_whole, mask
):
    place = items_ptr + item * ITEM_FIELDS
    tl.store(place, sequence, mask=mask)
    tl.store(place + 1, table_row, mask=mask)
    tl.store(place + 2, length, mask=mask)
    tl.store(place + 3, first_page, mask=mask)
    tl.store(place + 4, end_page, mask=mask)
    tl.store(place + 5, is_whole.to(tl.int32), mask=mask)


def decode_work_reference(
    metadata: PagedMetadata, *, block_size: int, window: int | None, num_workers: int
) -> DecodeWork:
    """The same on the host, page by page; items that nobody has are zeros."""
    work = _empty(metadata, block_size, num_workers)
    for tensor in (work.items, work.worker_items, work.sequence_items):
        tensor.zero_()
    # [item, worker, sequence, pages]
    cuts: list[tuple[int, int, int, list[int]]] = []
    views = [
        list(range(max(length - (window or length), 0) // block_size, -(-length // block_size)))
        for length in metadata.context_lens[: metadata.num_decodes].tolist()
    ]
    if metadata.is_invariant:
        splits = [
            (sequence, pages[begin : begin + size])
            for sequence, pages in enumerate(views)
            for size in [max(SPLIT_TOKENS // block_size, -(-len(pages) // MAX_SPLITS))]
            for begin in range(0, len(pages), size)
        ]
        share = -(-len(splits) // num_workers)
        cuts = [(item, item // share, *split) for item, split in enumerate(splits)]
    else:
        row = [(sequence, page) for sequence, pages in enumerate(views) for page in pages]
        share = -(-len(row) // num_workers)
        shares: dict[tuple[int, int], list[int]] = {}
        for place, (sequence, page) in enumerate(row):
            shares.setdefault((place // share, sequence), []).append(page)
        cuts = [(s + worker, worker, s, pages) for (worker, s), pages in shares.items()]
    for item, worker, sequence, pages in cuts:
        is_whole = pages == views[sequence]
        length = int(metadata.context_lens[sequence])
        row_of_table = int(metadata.table_rows[sequence])
        work.items[item] = torch.tensor(
            [sequence, row_of_table, length, pages[0], pages[-1] + 1, int(is_whole)]
        )
        for ends in (work.worker_items[worker], work.sequence_items[sequence]):
            ends[0] = item if ends[1] == 0 else ends[0]
            ends[1] = item + 1
    return work


def compile_cases() -> list[CompileCase]:
    """A batch of 256 in pages of 64, both ways of cutting."""
    return [
        CompileCase(
            name=f"decode work {name} 256",
            kernel=kernel,
            signature={
                **dict.fromkeys(kernel.arg_names[:5], "*i32"),
                **dict.fromkeys(kernel.arg_names[5:8], "i32"),
            },
            constants=dict(_constants(256, 64, is_invariant=is_invariant)),
            num_warps=_num_warps(is_invariant=is_invariant),
            num_stages=1,
            aligned=tuple(kernel.arg_names[:5]),
        )
        for name, kernel, is_invariant in (
            ("equal", _equal_shares_kernel, False),
            ("fixed", _fixed_splits_kernel, True),
        )
    ]
