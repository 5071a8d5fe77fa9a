"""An array arrives as it was, and is nobody else's."""

import numpy as np
import pytest
import torch

from vlmflow_engine.layers.host_array import to_device


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float32, np.float16])
def test_shape_and_dtype_are_kept_of_any_layout(dtype):
    array = np.arange(24).astype(dtype).reshape(4, 6)[:, ::2].T
    array.flags.writeable = False
    tensor = to_device(array, torch.device("cpu"))
    assert tensor.dtype == getattr(torch, np.dtype(dtype).name)
    assert tensor.tolist() == array.tolist()


def test_the_tensor_is_a_copy():
    array = np.zeros(3, np.int64)
    tensor = to_device(array, torch.device("cpu"))
    array += 1
    assert tensor.tolist() == [0, 0, 0]
