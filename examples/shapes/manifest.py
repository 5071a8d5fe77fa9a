"""The demo's manifest and images: 256 questions about 64 scenes, and six records that must fail.

python -m examples.shapes.manifest FOLDER
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

from examples.shapes.scenes import TASKS, ask, draw_scene

SEED = 2026  # of no scene that was trained on
NUM_SCENES = 64
QUESTIONS_PER_SCENE = 4


def write_manifest(folder: Path) -> Path:
    """Draw the images below `folder`/images and write `folder`/manifest.jsonl; return its path."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = random.Random(SEED)
    lines: list[str] = []
    for number in range(NUM_SCENES):
        scene, name = draw_scene(rng), f"images/scene-{number:03d}.png"
        scene.draw(rng.choice((192, 288, 384))).save(folder / name)
        first = number % len(TASKS)
        for task in (TASKS[first:] + TASKS[:first])[:QUESTIONS_PER_SCENE]:
            question = ask(rng, scene, task)
            lines.append(_line(f"scene-{number:03d}-{task}", question.text, [name], question))
    lines += _bad_lines(folder)
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def _bad_lines(folder: Path) -> list[str]:
    """One of each way in which a record fails; the files that it takes are written too."""
    whole = (folder / "images/scene-000.png").read_bytes()
    (folder / "images/corrupt.png").write_bytes(whole[:8] + b"not a picture " * 40)
    (folder / "images/truncated.png").write_bytes(whole[: len(whole) // 2])
    return [
        _line("missing-image", "Describe the scene.", ["images/missing.png"]),
        _line("corrupt-image", "Describe the scene.", ["images/corrupt.png"]),
        _line("truncated-image", "Describe the scene.", ["images/truncated.png"]),
        _line("long-prompt", "How many shapes are there? " * 400, ["images/scene-000.png"]),
        _line("scene-000-describe", "Describe the scene.", ["images/scene-000.png"]),  # a duplicate
        '{"id": "not-json", "prompt": "Describe the scene."',
    ]


def _line(record_id: str, prompt: str, images: list[str], question: Any = None) -> str:
    record: dict[str, Any] = {"id": record_id, "prompt": prompt, "images": images}
    if question is not None:
        record |= {"expected": question.answer, "metadata": {"task": question.task}}
    return json.dumps(record)


if __name__ == "__main__":
    print(write_manifest(Path(sys.argv[1])))
