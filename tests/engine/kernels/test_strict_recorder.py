"""What the tests' recorder refuses, and what it lets pass: it is no stricter than a CUDA graph."""

import pytest
import torch
import triton
import triton.language as tl

from tests.engine.kernels.strict_recorder import NotRecordable, StrictRecorder


@triton.jit
def _double_kernel(x_ptr, out_ptr, count, SIZE: tl.constexpr):
    places = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    mask = places < count
    tl.store(out_ptr + places, 2 * tl.load(x_ptr + places, mask=mask), mask=mask)


def _double(x: torch.Tensor, count: int) -> torch.Tensor:
    out = torch.empty_like(x)
    _double_kernel[(triton.cdiv(count, 4),)](x, out, count, SIZE=4)
    return out


def test_a_replay_computes_what_the_inputs_hold_by_then():
    x = torch.arange(6.0)
    replay = StrictRecorder().record(lambda: _double(x + 1, 6))
    x.copy_(torch.full((6,), 4.0))
    assert replay().tolist() == [10.0] * 6


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x * x[0].item(),
        lambda x: x * x.tolist()[0],
        lambda x: x * int(x[0]),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x[x > 2],
        lambda x: x.masked_select(x > 2),
        lambda x: x.clone().index_put_((x > 2,), x[:1]),
        lambda x: x[[0, 1]],
        lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]),
        lambda x: x + torch.from_numpy(x.numpy()),
        lambda x: x.nonzero(),
        lambda x: torch.unique(x),
        lambda x: x.cpu(),
    ],
)
def test_who_asks_what_a_tensor_holds_is_refused(body):
    x = torch.arange(4.0)
    with pytest.raises(NotRecordable, match=r"wait for each other|by a mask"):
        StrictRecorder().record(lambda: body(x))


@pytest.mark.parametrize(
    "body",
    [
        lambda x, number: _double(x, 4 + number),  # another number, and another grid
        lambda x, number: x * number,
        lambda x, number: x[: 2 + number],
        lambda x, number: x + x if number else x,
        lambda x, number: _double(x.T if number else x, 4),
    ],
)
def test_a_launch_that_changes_is_refused(body):
    numbers = iter([0, 0, 0, 1])
    x = torch.ones(4, 4)
    replay = StrictRecorder().record(lambda: body(x, next(numbers)))
    replay()
    with pytest.raises(NotRecordable, match="was|recorded"):
        replay()


def test_an_input_that_has_moved_is_refused():
    inputs = [torch.ones(4) for _ in range(4)]
    held = iter([inputs[0], inputs[0], inputs[1]])
    replay = StrictRecorder().record(lambda: next(held) + 1)
    with pytest.raises(NotRecordable, match="launch 0 was"):
        replay()


def test_a_replay_writes_over_what_others_have_returned():
    x = torch.ones(4)
    recorder = StrictRecorder()
    first, second = recorder.record(lambda: x + 1), recorder.record(lambda: x + 2)
    one = first()
    second()
    assert one.isnan().all()
