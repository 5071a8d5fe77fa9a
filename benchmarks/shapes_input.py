"""Scenes of the demo in any number: images on disk, and a manifest on S3 that names them."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.shapes.scenes import TASKS, ask, draw_scene

CHECKPOINT = Path("examples/shapes/checkpoint")
SIDE = 288  # pixels of an image
QUESTIONS_PER_SCENE = 4
_SEED = 6


def draw_scenes(folder: Path, count: int) -> list[tuple[Path, list[str]]]:
    """The first `count` scenes: an image's file, and questions about it. Files are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_draw(folder, number) for number in range(count)]


def _draw(folder: Path, number: int) -> tuple[Path, list[str]]:
    rng = random.Random(_SEED * 1_000_000 + number)
    scene, path = draw_scene(rng), folder / f"scene-{number:05d}.png"
    if not path.is_file():
        scene.draw(SIDE).save(path)
    tasks = [TASKS[(number + turn) % len(TASKS)] for turn in range(QUESTIONS_PER_SCENE)]
    return path, [ask(rng, scene, task).text for task in tasks]


def put_manifest(client: Any, bucket: str, name: str, folder: Path, num_records: int) -> str:
    """Upload images and a manifest of so many records; return the manifest's URI."""
    scenes = draw_scenes(folder, -(-num_records // QUESTIONS_PER_SCENE))
    lines = list(_lines(scenes))[:num_records]
    for path, _ in scenes:
        client.upload_file(str(path), bucket, f"{name}/images/{path.name}")
    key = f"{name}/manifest.jsonl"
    client.put_object(Bucket=bucket, Key=key, Body="".join(lines).encode())
    return f"s3://{bucket}/{key}"


def _lines(scenes: list[tuple[Path, list[str]]]) -> Iterator[str]:
    for path, questions in scenes:
        for turn, question in enumerate(questions):
            record = {"id": f"{path.stem}-{turn}", "prompt": question}
            yield json.dumps(record | {"images": [f"images/{path.name}"]}) + "\n"
