"""The requests of the end-to-end runs: one image each, an answer of exactly so many tokens."""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

_WORDS = ("describe", "the", "scene", "how", "many", "red", "shapes", "are", "there", "at", "top")


@dataclass(frozen=True, slots=True)
class Workload:
    """Sizes of one kind of job."""

    name: str
    side: int  # pixels of the square images
    shortest: int  # tokens of an answer, drawn evenly between the two
    longest: int
    num_words: tuple[int, int] = (10, 60)  # of a prompt


LARGE_IMAGES = Workload("1-megapixel images, 16 to 256 tokens", 1024, 16, 256)
SMALL_IMAGES = Workload("one-tile images, 64 to 512 tokens", 336, 64, 512)
TOY_LARGE = Workload("toy: images of 84 pixels, 2 to 6 tokens", 84, 2, 6, (2, 6))
TOY_SMALL = Workload("toy: images of 42 pixels, 3 to 8 tokens", 42, 3, 8, (2, 6))


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """One image, one question."""

    image: str  # path
    text: str
    num_new_tokens: int


def make_requests(
    folder: Path, workload: Workload, count: int, *, series: int = 0
) -> list[GpuRequest]:
    """Draw requests; the images of another series are others, and all else is alike.

    So a second run finds nothing of the first one's in a cache, and has the same work.
    """
    rng = random.Random(workload.side)
    folder.mkdir(parents=True, exist_ok=True)
    requests = []
    for index, num_new_tokens in enumerate(draw_lengths(workload, count)):
        path = folder / f"{workload.side}-{series}-{index}.jpg"
        if not path.is_file():
            _draw(path, workload.side, seed=1_000_003 * series + index)
        # The number tells prompts of different series apart from their first token on.
        words = [str(series), *rng.choices(_WORDS, k=rng.randint(*workload.num_words))]
        requests.append(GpuRequest(str(path), " ".join(words), num_new_tokens))
    return requests


def draw_lengths(workload: Workload, count: int) -> list[int]:
    """Tokens of the answers, the same ones for every series."""
    rng = random.Random(workload.longest)
    return [rng.randint(workload.shortest, workload.longest) for _ in range(count)]


def save_requests(path: Path, requests: list[GpuRequest]) -> None:
    path.write_text(json.dumps([asdict(request) for request in requests]), encoding="utf-8")


def load_requests(path: Path) -> list[GpuRequest]:
    return [GpuRequest(**item) for item in json.loads(path.read_text(encoding="utf-8"))]


def _draw(path: Path, side: int, seed: int) -> None:
    """A smooth picture of some hundred kilobytes, as a photograph of that size has."""
    small = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    image = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
    image.save(path, quality=90)
