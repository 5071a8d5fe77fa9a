"""A step's embeddings: rows of the token table, and image embeddings over the placeholders.

    out[i] = the row at addresses[i], where there is one, else table[token_ids[i]]

Images' embeddings are tensors of their own, which come and go one by one. Their rows are told by
address, so that one launch takes them from wherever they are: neither a launch an image, nor a copy
of all of them to one place.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from vlmflow_engine.kernels.compile_case import CompileCase

_COLUMNS = 1024
_NUM_WARPS = 4
_ALIGNMENT = 16  # bytes of the widest load


@triton.jit
def _embedding_rows_kernel(
    # pointers
    token_ids_ptr, table_ptr, addresses_ptr, out_ptr,
    # sizes
    size,
    # constants
    COLUMNS: tl.constexpr, HAS_IMAGES: tl.constexpr, ALIGNMENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = columns < size
    out_ptrs = out_ptr + row * size + columns
    # A placeholder's token may be none of the table's.
    address = tl.load(addresses_ptr + row) if HAS_IMAGES else row * 0
    if address == 0:
        token_id = tl.load(token_ids_ptr + row)
        tl.store(out_ptrs, tl.load(table_ptr + token_id * size + columns, mask=mask), mask=mask)
    else:
        source_ptr = address.to(tl.pointer_type(table_ptr.dtype.element_ty))
        source_ptr = tl.multiple_of(source_ptr, ALIGNMENT)
        tl.store(out_ptrs, tl.load(source_ptr + columns, mask=mask), mask=mask)


def embedding_rows(token_ids: Tensor, table: Tensor, addresses: Tensor | None) -> Tensor:
    """Return a step's embeddings [num_tokens, size].

    token_ids  [num_tokens] int64; of placeholders anything
    table      [vocab_size, size], contiguous
    addresses  of `image_addresses`, on the table's device; None: the step has no images. What they
               point to must live until the step is computed.
    """
    (num_tokens,), size = token_ids.shape, table.shape[1]
    assert token_ids.dtype == torch.int64 and token_ids.is_contiguous() and table.is_contiguous()
    assert addresses is None or addresses.shape == token_ids.shape
    assert addresses is None or addresses.dtype == torch.int64
    out = table.new_empty((num_tokens, size))
    if num_tokens == 0:
        return out
    _embedding_rows_kernel[(num_tokens, triton.cdiv(size, _COLUMNS))](
        token_ids_ptr=token_ids,
        table_ptr=table,
        addresses_ptr=token_ids if addresses is None else addresses,
        out_ptr=out,
        size=size,
        COLUMNS=_COLUMNS,
        HAS_IMAGES=addresses is not None,
        ALIGNMENT=_row_alignment(size * table.itemsize),
        num_warps=_NUM_WARPS,
        num_stages=1,
    )
    return out


def image_addresses(num_tokens: int, spans: Iterable[tuple[int, Tensor]], table: Tensor) -> Tensor:
    """Say where each row of a step comes from: [num_tokens] int64 on the CPU; 0: the table.

    spans  (first row of the step, embeddings [num_rows, size] that go there), contiguous, of the
           table's dtype and device
    """
    addresses = np.zeros(num_tokens, np.int64)
    row_bytes = table.shape[1] * table.itemsize
    for first, rows in spans:
        assert rows.shape[1:] == table.shape[1:] and rows.is_contiguous()
        assert rows.dtype == table.dtype and rows.device == table.device
        assert rows.data_ptr() % _row_alignment(row_bytes) == 0
        assert first >= 0 and first + len(rows) <= num_tokens
        addresses[first : first + len(rows)] = rows.data_ptr() + row_bytes * np.arange(len(rows))
    return torch.from_numpy(addresses)


def _row_alignment(row_bytes: int) -> int:
    """The largest power of two, up to that of a load, which all rows' addresses are multiples of.

    Tensors begin at more, and a slice of a tensor's rows at a row.
    """
    return min(_ALIGNMENT, row_bytes & -row_bytes)


def embedding_rows_reference(
    token_ids: Tensor, table: Tensor, spans: Iterable[tuple[int, Tensor]]
) -> Tensor:
    """The same in plain torch, from the spans themselves."""
    spans = list(spans)
    is_image = torch.zeros_like(token_ids, dtype=torch.bool)
    for first, rows in spans:
        is_image[first : first + len(rows)] = True
    out = F.embedding(token_ids.masked_fill(is_image, 0), table)
    for first, rows in spans:
        out[first : first + len(rows)] = rows
    return out


def compile_cases() -> list[CompileCase]:
    """A step with images, and one without."""
    return [
        CompileCase(
            name=f"embedding_rows bf16{' images' if has_images else ''}",
            kernel=_embedding_rows_kernel,
            signature={
                "token_ids_ptr": "*i64",
                "table_ptr": "*bf16",
                "addresses_ptr": "*i64",
                "out_ptr": "*bf16",
                "size": "i32",
            },
            constants={
                "COLUMNS": _COLUMNS,
                "HAS_IMAGES": has_images,
                "ALIGNMENT": _row_alignment(2 * 3584),
            },
            num_warps=_NUM_WARPS,
            num_stages=1,
            aligned=("token_ids_ptr", "table_ptr", "addresses_ptr", "out_ptr", "size"),
        )
        for has_images in (True, False)
    ]
