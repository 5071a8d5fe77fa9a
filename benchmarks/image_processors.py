"""From a JPEG file to a vision tower's input: the engine's image processors beside transformers'.

    python -m benchmarks.image_processors [--repeats 9] [--output FILE]

Both decode the same bytes with Pillow, on one thread; times are CPU milliseconds, taken in turns.
The engine's workers hand on 8-bit pixels and leave normalising to the device, which the last
columns add, as a CPU does it on the same thread.
"""

import argparse
import io
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers
from PIL import Image

from vlmflow_engine.image_format import ImageFormat, Normalisation
from vlmflow_engine.inputs.image_decode import decode_image
from vlmflow_engine.inputs.image_processors import load_image_processor
from vlmflow_engine.models.family import ImagePixels
from vlmflow_engine.request import ImageInput
from vlmflow_engine.runner.encoder_runner import EncoderRunner

SIZES = ((640, 480), (1000, 1000), (1920, 1080), (3000, 2000))


@dataclass(frozen=True)
class Case:
    """An image processor of both sides, set up by one preprocessor_config.json."""

    name: str
    theirs: str  # class in transformers
    processor: str  # ImageFormat's
    parameters: dict[str, Any]  # ImageFormat's
    config: dict[str, Any]


CLIP = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
QWEN = {"min_pixels": 3136, "max_pixels": 12845056}
CASES = (
    Case("LLaVA-1.5", "CLIPImageProcessorPil", "clip", {"side": 336, "num_rows": 576}, CLIP),
    Case(
        "Qwen2(.5)-VL",
        "Qwen2VLImageProcessorPil",
        "qwen2_vl",
        {"patch_size": 14, "merge_size": 2},
        QWEN,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Image processors",
        "",
        f"JPEG files of quality 90, decoding included, one thread of 2 shared cores; CPU "
        f"milliseconds, medians of {options.repeats} turns. Python {platform.python_version()}, "
        f"Pillow {PIL.__version__}, transformers {transformers.__version__} (its Pillow "
        f"processors), torch {torch.__version__}.",
        "",
        "`python -m benchmarks.image_processors` made this. Decoding and resizing are Pillow's own "
        "part, the same calls for both: nobody whose pixels are Pillow's, bit for bit, can be "
        "faster. The engine's workers hand on 8-bit pixels; normalising is the device's work, and "
        "the last columns add it as if the device were the same thread.",
        "",
        "| processor | pixels | decoding and resizing alone | transformers | engine | faster "
        "| engine, normalised | faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        for size in SIZES:
            lines.append(measure(case, size, options.repeats))
            print(lines[-1], flush=True)
    if options.output is not None:
        options.output.write_text("\n".join(lines) + "\n")


def measure(case: Case, size: tuple[int, int], repeats: int) -> str:
    """Return a row of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "preprocessor_config.json").write_text(
            json.dumps(case.config | {"image_processor_type": case.theirs.removesuffix("Pil")})
        )
        theirs = getattr(transformers, case.theirs).from_pretrained(folder)
        ours = load_image_processor(
            folder, ImageFormat(processor=case.processor, parameters=case.parameters)
        )
    data = _jpeg(*size)

    def decode() -> Image.Image:
        return decode_image(data, max_pixels=1 << 28)

    def process() -> None:
        ours(decode(), {})

    calls = _resizes_of(process)

    def pillow() -> None:
        image = decode()
        for arguments in calls:
            image.resize(*arguments)

    def normalise() -> None:
        processed = ours(decode(), {})
        image = ImageInput(b"", processed.pixels, 0, processed.num_rows, processed.layout)
        _normalise(image, ours.normalisation)

    def reference() -> None:
        theirs(Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt")

    floor, they, we, all_of_it = _medians((pillow, reference, process, normalise), repeats)
    return (
        f"| {case.name} | {size[0]} x {size[1]} | {floor:.1f} | {they:.1f} | {we:.1f} | "
        f"{they / we:.1f} x | {all_of_it:.1f} | {they / all_of_it:.1f} x |"
    )


def _resizes_of(work: Callable[[], object]) -> list[tuple[Any, ...]]:
    """The arguments of the calls to Image.resize that a work makes."""
    calls: list[tuple[Any, ...]] = []
    resize = Image.Image.resize

    def record(image: Image.Image, *arguments: Any) -> Image.Image:
        calls.append(arguments)
        return resize(image, *arguments)

    Image.Image.resize = record  # type: ignore[method-assign, assignment]
    try:
        work()
    finally:
        Image.Image.resize = resize  # type: ignore[method-assign]
    return calls


class _NoTower:
    """Takes an image's values, and makes as many rows as are asked for of none of them."""

    def encode_images(self, images: list[ImagePixels]) -> list[torch.Tensor]:
        raise NotImplementedError


def _normalise(image: ImageInput, normalisation: Normalisation) -> torch.Tensor:
    runner = EncoderRunner(
        _NoTower(),  # type: ignore[arg-type]
        normalisation,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    return runner._to_device(image).values


def _medians(works: tuple[Callable[[], object], ...], repeats: int) -> list[float]:
    """CPU milliseconds of each, taken in turns after one that does not count."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 1):
        for work, taken in zip(works, times, strict=True):
            begin = time.process_time()
            work()
            if turn:
                taken.append(1000 * (time.process_time() - begin))
    return [statistics.median(taken) for taken in times]


def _jpeg(width: int, height: int) -> bytes:
    """A picture with edges, shades and a little noise: a photograph's work for a decoder."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (height // 40, width // 40, 3), np.uint8))
    picture = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    picture = picture + rng.integers(-6, 7, (height, width, 3), np.int16)
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


if __name__ == "__main__":
    main()
