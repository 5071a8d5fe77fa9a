"""A recorder for the CPU that holds a step of decoding to what a CUDA graph can be.

A graph is a list of launches: which kernel, in which grid, on which addresses, with which numbers.
So every replay must make the very list that was recorded, whatever the tensors hold by then; and
nothing in it may ask what they hold.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.runtime.interpreter import InterpretedFunction


class NotRecordable(AssertionError):
    """A step does what a CUDA graph cannot hold."""


# What waits for the device, or sends it something, by the name of the function; and by its operator
# where that shows no function, as within `if tensor:`.
_HOST_FUNCTIONS = {
    *("item", "tolist", "numpy", "cpu", "cuda", "pin_memory", "nonzero", "argwhere"),
    *("masked_select", "unique", "tensor", "as_tensor", "from_numpy", "__array__"),
}
_HOST_OPERATORS = {
    *("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim"),
    *("lift_fresh", "is_nonzero", "equal", "repeat_interleave"),
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class StrictRecorder:
    """Stands in for CudaGraphRecorder where kernels run in Triton's interpreter."""

    def __init__(self) -> None:
        self.num_recorded = self.num_replayed = 0
        self._outputs: list[Tensor] = []

    def record(self, body: Callable[[], Tensor]) -> Callable[[], Tensor]:
        body()
        recorded, out = _watch(body)
        self._outputs.append(out)
        self.num_recorded += 1

        def replay() -> Tensor:
            launched, again = _watch(body)
            self.num_replayed += 1
            _check_equal(recorded, launched)
            # Graphs of one pool write over each other's results, and each over its own.
            result = again.clone()
            for other in self._outputs:
                other.fill_(torch.nan)
            return out.copy_(result)

        return replay


def _watch(body: Callable[[], Tensor]) -> tuple[list[Any], Tensor]:
    """Run a step; return all that it launches, and its result."""
    tape = _Tape()
    with ExitStack() as stack:
        stack.enter_context(_launches_on(tape))
        stack.enter_context(_Functions())
        stack.enter_context(_Operators(tape))
        out = body()
    return tape.entries, out


def _check_equal(recorded: list[Any], launched: list[Any]) -> None:
    for place, (one, other) in enumerate(zip(recorded, launched, strict=False)):
        if one != other:
            raise NotRecordable(f"launch {place} was {one}\nand is now {other}")
    if len(recorded) != len(launched):
        raise NotRecordable(
            f"{len(recorded)} launches were recorded, now there are {len(launched)}"
        )


class _Tape:
    """Launches, told so that two runs can be compared.

    A tensor that the step makes is told by when it was made, any other by its address.
    """

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self._made: dict[int, int] = {}  # storages of this run, by address
        self._alive: list[Any] = []  # else an address would come again

    def note(self, name: str, arguments: Any, results: Any = ()) -> None:
        self.entries.append((name, self._told(arguments)))
        for tensor in _tensors(results):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._made and not self._is_argument(tensor, arguments):
                self._made[storage.data_ptr()] = len(self._made)
                self._alive.append(storage)

    def _is_argument(self, tensor: Tensor, arguments: Any) -> bool:
        address = tensor.untyped_storage().data_ptr()
        return any(other.untyped_storage().data_ptr() == address for other in _tensors(arguments))

    def _told(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            address = value.untyped_storage().data_ptr()
            place = ("made", self._made[address]) if address in self._made else ("at", address)
            form = (tuple(value.shape), value.stride(), value.storage_offset(), str(value.dtype))
            return (*place, *form)
        if isinstance(value, list | tuple):
            return tuple(map(self._told, value))
        if isinstance(value, dict):
            return tuple((name, self._told(item)) for name, item in sorted(value.items()))
        return (type(value).__name__, str(value))


class _Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in _HOST_FUNCTIONS:
            raise NotRecordable(f"{name}() has the host and the device wait for each other")
        return function(*args, **kwargs or {})


class _Operators(TorchDispatchMode):
    def __init__(self, tape: _Tape) -> None:
        super().__init__()
        self._tape = tape

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if name in _HOST_OPERATORS:
            raise NotRecordable(f"{name} has the host and the device wait for each other")
        if name in _INDEXING and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            raise NotRecordable(f"{name} by a mask: how many it chooses is not known")
        results = operator(*args, **kwargs or {})
        self._tape.note(name, (args, kwargs or {}), results)
        return results


@contextmanager
def _launches_on(tape: _Tape) -> Iterator[None]:
    run = InterpretedFunction.run

    def noted(kernel: InterpretedFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any):
        named = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        tape.note(kernel.fn.__name__, (grid(named) if callable(grid) else grid, named))
        # What the interpreter does with torch is no part of the step.
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return run(kernel, *args, grid=grid, warmup=warmup, **kwargs)

    with patch.object(InterpretedFunction, "run", noted):
        yield


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
