"""Which dialect a manifest is in, by what it begins with."""

import re

from vlmflow.job.dialects.csv_table import is_header
from vlmflow.job.dialects.item import LineError
from vlmflow.job.dialects.json_lines import BYTE_ORDER_MARK, parse_object
from vlmflow.job.dialects.lines import split_lines
from vlmflow.job.dialects.parquet_table import MAGIC
from vlmflow.job.dialects.signs import LINE_SIGNS, dialect_of
from vlmflow.job.dialects.source import ManifestSource
from vlmflow.job.errors import ManifestError

DIALECTS = (*LINE_SIGNS, "sagemaker-manifest", "csv", "parquet", "prefix")
_MAX_HEAD_LINES = 100
_MAX_HEAD_BYTES = 1 << 20
_ARRAY = re.compile(rb'\s*\[\s*\{\s*"prefix"\s*:')


def head_lines(source: ManifestSource) -> list[tuple[int, bytes]]:
    """The manifest's first lines that are not blank, numbered: one at least, if there is one."""
    head: list[tuple[int, bytes]] = []
    for number, end, line in split_lines(source.content()):
        if line.strip():
            head.append((number, line))
        if head and (len(head) == _MAX_HEAD_LINES or end > _MAX_HEAD_BYTES):
            break
    return head


def detect(source: ManifestSource, head: list[tuple[int, bytes]]) -> str:
    """Name the dialect. Raises ManifestError if none is recognised."""
    if not head:
        return "native"  # as good as any: it has no records
    number, first = head[0]
    if first.startswith(MAGIC):
        return "parquet"
    first = first.removeprefix(BYTE_ORDER_MARK) if number == 1 else first
    if _ARRAY.match(b"\n".join([first[:1000], *(line[:1000] for _, line in head[1:3])])):
        return "sagemaker-manifest"
    for number, line in head:
        try:
            found = dialect_of(parse_object(number, line))
        except LineError:
            continue
        if found is not None:
            return found
    if is_header(first):
        return "csv"
    raise ManifestError(
        f"manifest {source.uri!r}: cannot tell its dialect, it begins with {_shown(first)}; "
        f"known are {', '.join(DIALECTS)}: name one with the option dialect"
    )


def first_model(head: list[tuple[int, bytes]], dialect: str) -> str | None:
    """The model that the manifest's first lines ask for."""
    body = {"openai": "body", "anthropic": "params", "bedrock": "modelInput"}.get(dialect, "")
    for number, line in head:
        try:
            fields = parse_object(number, line).get(body)
        except LineError:
            continue
        model = fields.get("model") if isinstance(fields, dict) else None
        if isinstance(model, str):
            return model
    return None


def _shown(line: bytes) -> str:
    try:
        fields = parse_object(0, line)
    except LineError:
        return repr(line[:60].decode(errors="replace"))
    names = ", ".join(repr(name[:40]) for name in list(fields)[:5])
    return f"an object with the fields {names}" if names else "an object without fields"
