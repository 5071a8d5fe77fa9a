"""A stream of bytes as lines, with the place of each."""

from collections.abc import Iterable, Iterator

MAX_LINE_BYTES = 32 << 20  # a line may hold an image as a data URL


def split_lines(
    chunks: Iterable[bytes], *, line: int = 0, byte: int = 0
) -> Iterator[tuple[int, int, bytes]]:
    """Yield (number from 1, byte behind the line's end, line without its end).

    `line` and `byte` say where the stream begins. A line that is too long comes cut off, though
    longer than MAX_LINE_BYTES.
    """
    rest, num_dropped = bytearray(), 0
    for chunk in chunks:
        *complete, tail = chunk.split(b"\n")
        for content in complete:
            if rest:
                byte += num_dropped
                content = bytes(rest + content)
                rest.clear()
                num_dropped = 0
            line += 1
            byte += len(content) + 1
            yield line, byte, content
        kept = tail[: max(0, MAX_LINE_BYTES + 1 - len(rest))]
        num_dropped += len(tail) - len(kept)
        rest += kept
    if rest:
        yield line + 1, byte + len(rest) + num_dropped, bytes(rest)
