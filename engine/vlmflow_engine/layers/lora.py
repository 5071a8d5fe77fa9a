"""Low-rank adapters of a linear layer: y += B A x for the rows whose request asks for one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """The rows of a step that one adapter is for."""

    name: str
    rows: Tensor | None  # [num_rows] int64, all different; None: every row of the step


@dataclass(frozen=True, slots=True)
class LoraPart:
    """What an adapter adds to one of the layers that a linear layer is merged of."""

    a: Tensor  # [rank, in_features]
    b: Tensor  # [out_features, rank]
    scaling: float


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """What an adapter adds to a linear layer."""

    a: Tensor  # [rank, in_features]
    b: Tensor  # [out_features, rank], scaled

    @classmethod
    def merged(
        cls,
        parts: Sequence[LoraPart | None],
        out_features: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "LoraWeights":
        """Put the adapters of a merged layer's parts together: two GEMMs, not two for each part.

        Every A is stacked; each B writes to the outputs of its own part. None: a part that the
        adapter leaves as it is.
        """
        present = [part for part in parts if part is not None]
        rank = sum(len(part.a) for part in present)
        b = torch.zeros(sum(out_features), rank)
        row = column = 0
        for part, size in zip(parts, out_features, strict=True):
            if part is not None:
                end = column + len(part.a)
                # Scaled in float32, so that the engine's dtype rounds once.
                b[row : row + size, column:end] = part.b.float() * part.scaling
                column = end
            row += size
        a = torch.cat([part.a.float() for part in present])
        return cls(a.to(device=device, dtype=dtype), b.to(device=device, dtype=dtype))

    @property
    def num_bytes(self) -> int:
        return self.a.nbytes + self.b.nbytes


def add_adapters(
    y: Tensor, x: Tensor, weights: Mapping[str, LoraWeights], adapters: Sequence[AdapterRows]
) -> None:
    """Add to a linear layer's output, in place, what each adapter makes of the input's rows.

    y        [num_tokens, out_features]
    x        [num_tokens, in_features]
    weights  by adapter; one that is not there leaves this layer as it is
    """
    for adapter in adapters:
        lora = weights.get(adapter.name)
        if lora is None:
            continue
        if adapter.rows is None:
            y.addmm_(F.linear(x, lora.a), lora.b.T)
        else:
            hidden = F.linear(x.index_select(0, adapter.rows), lora.a)
            y.index_add_(0, adapter.rows, F.linear(hidden, lora.b))
