"""Images cut into patches."""

from torch import Tensor


def cut_patches(pixels: Tensor, size: int) -> Tensor:
    """[images, channels, height, width] -> [images, patches, channels * size * size], row by row.

    A convolution with stride = kernel is a linear layer over these; as such it is far faster in
    bfloat16 on a CPU. Pixels beyond the last whole patch are left out, as a convolution does.
    """
    images, channels, height, width = pixels.shape
    rows, columns = height // size, width // size
    return (
        pixels[..., : rows * size, : columns * size]
        .reshape(images, channels, rows, size, columns, size)
        .permute(0, 2, 4, 1, 3, 5)
        .reshape(images, rows * columns, channels * size * size)
    )
