"""Manifests for the tests: an example of each dialect, and readers of any bytes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmflow.job.dialects import BadLine, Item, ManifestReader
from vlmflow.job.dialects.reading import START, Position
from vlmflow.job.record import Record
from vlmflow.job.store.folder import FolderStore

KEY = "m"
PROMPT = "Describe it."

# One line of each, with most of what the dialect can say.
LINES: dict[str, dict[str, Any]] = {
    "native": {
        "id": "r1",
        "prompt": PROMPT,
        "images": ["a.png"],
        "expected": "a cat",
        "metadata": {"split": "test"},
        "generation": {"max_new_tokens": 32},
    },
    "openai": {
        "custom_id": "r1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "m",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
                        {"type": "text", "text": PROMPT},
                    ],
                },
            ],
            "max_completion_tokens": 32,
            "temperature": 0.5,
            "stop": "\n",
            "metadata": {"split": "test"},
        },
    },
    "anthropic": {
        "custom_id": "r1",
        "params": {
            "model": "m",
            "max_tokens": 32,
            "system": "Be brief.",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "url", "url": "a.png"}},
                        {"type": "text", "text": PROMPT},
                    ],
                }
            ],
            "stop_sequences": ["\n"],
        },
    },
    "bedrock": {
        "recordId": "r1",
        "modelInput": {
            "system": [{"text": "Be brief."}],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "image": {
                                "format": "png",
                                "source": {"s3Location": {"uri": "s3://bucket/a.png"}},
                            }
                        },
                        {"text": PROMPT},
                    ],
                }
            ],
            "inferenceConfig": {"maxTokens": 32, "stopSequences": ["\n"]},
            "additionalModelRequestFields": {"top_k": 5},
        },
    },
    "gemini": {
        "key": "r1",
        "request": {
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "contents": [
                {
                    "role": "user",
                    "parts": [
                        {"fileData": {"fileUri": "s3://bucket/a.png", "mimeType": "image/png"}},
                        {"text": PROMPT},
                    ],
                }
            ],
            "generationConfig": {"maxOutputTokens": 32, "stopSequences": ["\n"]},
        },
    },
    "ground-truth": {
        "source-ref": "s3://bucket/a.png",
        "class": 3,
        "class-metadata": {"class-name": "cat", "confidence": 0.9},
    },
}
LINE_DIALECTS = tuple(LINES)
NEEDS_PROMPT = frozenset(("ground-truth", "sagemaker-manifest", "prefix"))


class ChunkedStore(FolderStore):
    """Streams in chunks of so many bytes."""

    def __init__(self, root: Path, chunk_bytes: int) -> None:
        super().__init__(root)
        self._chunk_bytes = chunk_bytes

    def stream(self, key: str, *, etag: str | None = None, start: int = 0) -> Iterator[bytes]:
        data = b"".join(super().stream(key, etag=etag, start=start))
        for place in range(0, len(data), self._chunk_bytes):
            yield data[place : place + self._chunk_bytes]


def reader(
    folder: Path, data: bytes, dialect: str = "auto", chunk_bytes: int = 1 << 20, **options: Any
) -> ManifestReader:
    """A reader of these very bytes."""
    store = ChunkedStore(folder, chunk_bytes)
    store.write(KEY, data)
    if dialect in NEEDS_PROMPT:
        options.setdefault("prompt", PROMPT)
    return ManifestReader(store, KEY, etag=store.stat(KEY).etag, dialect=dialect, **options)


def read(folder: Path, data: bytes, dialect: str = "auto", **options: Any) -> list[Item]:
    return list(reader(folder, data, dialect, **options).items())


def read_from(manifest: ManifestReader, start: Position = START) -> list[tuple[Item, Position]]:
    """The items, each with the position behind it."""
    reading = manifest.items(start)
    return [(item, reading.position) for item in reading]


def one(folder: Path, line: Any, dialect: str = "auto", **options: Any) -> Item:
    """What becomes of one line, given as bytes or as what it holds."""
    data = line if isinstance(line, bytes) else json.dumps(line).encode()
    [item] = read(folder, data, dialect, **options)
    return item


def record(folder: Path, line: Any, dialect: str = "auto", **options: Any) -> Record:
    item = one(folder, line, dialect, **options)
    assert isinstance(item, Record), item
    return item


def reason(folder: Path, line: Any, dialect: str = "auto", **options: Any) -> str:
    item = one(folder, line, dialect, **options)
    assert isinstance(item, BadLine), item
    assert (item.failure.stage, item.failure.error_class) == ("manifest", "invalid_line")
    assert len(item.failure.message) < 400
    return item.failure.message


def user_message(*parts: Any) -> dict[str, Any]:
    """A message as the engine takes it; a number stands for an image."""
    return {
        "role": "user",
        "content": [
            {"type": "image", "image": {"$image": part}}
            if isinstance(part, int)
            else {"type": "text", "text": part}
            for part in parts
        ],
    }
