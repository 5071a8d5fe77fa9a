"""Into how many tiles InternVL cuts an image."""

from functools import lru_cache


def choose_grid(
    size: tuple[int, int], side: int, *, min_tiles: int, max_tiles: int
) -> tuple[int, int]:
    """Return (columns, rows) with the ratio nearest to an image's, min_tiles to max_tiles in all.

    size  (width, height) of the image
    side  of a tile, in pixels

    Of grids that are equally near the largest is taken that has less than twice the image's
    pixels. Without any grid, as with fewer tiles allowed than needed, an image is one tile.
    """
    width, height = size
    ratio, area = width / height, width * height
    best, nearest = (1, 1), float("inf")
    for columns, rows in _grids(min_tiles, max_tiles):
        distance = abs(ratio - columns / rows)
        is_small_enough = area > 0.5 * side * side * columns * rows
        if distance < nearest or (distance == nearest and is_small_enough):
            best, nearest = (columns, rows), distance
    return best


@lru_cache(maxsize=64)
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows), the smallest first."""
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
        if columns * rows >= min_tiles
    ]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))
