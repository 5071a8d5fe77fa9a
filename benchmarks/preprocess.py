"""Prompts prepared a second, and what they cost the engine's process, by a thread and by processes.

python -m benchmarks.preprocess [--workers 0 1 2] [--side 384 1024] [--questions 200]

0 is a thread of this process. Its milliseconds are taken from the process that steps the engine.
"""

import argparse
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.inputs.fetcher import NamedFetcher
from vlmflow_engine.inputs.preprocessor import Preprocessor, ThreadPreprocessor
from vlmflow_engine.inputs.worker_frames import BuilderSpec
from vlmflow_engine.inputs.worker_pool import ProcessPreprocessor

CHECKPOINT = Path("examples/shapes/checkpoint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--side", type=int, nargs="+", default=[96, 384, 1024], help="pixels")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--ahead", type=int, default=128, help="prompts in flight")
    options = parser.parse_args()
    spec = BuilderSpec(
        folder=CHECKPOINT,
        image_format=ImageFormat(
            token_id=3, processor="clip", parameters={"side": 96, "num_rows": 36}
        ),
        fetch=NamedFetcher("vlmflow_engine.vl.fetch:fetch_image"),
        max_image_pixels=1 << 26,
    )
    print("  side source workers start s prompts/s  ms here  RSS MB")
    for side in options.side:
        for source in ("jpeg", "pil"):
            prompts = _prompts(side, source, options.questions)
            for num_workers in options.workers:
                start, rate, here, rss = measure(spec, prompts, num_workers, options.ahead)
                print(
                    f"{side:>6} {source:>6} {num_workers:>7} {start:>7.2f} {rate:>9.0f} "
                    f"{here:>8.2f} {rss:>7.0f}"
                )


def measure(
    spec: BuilderSpec, prompts: list[Any], num_workers: int, ahead: int
) -> tuple[float, float, float, float]:
    """Seconds to start, prompts a second, CPU ms of this process a prompt, MB of a worker."""
    begin = time.perf_counter()
    preprocessor: Preprocessor = (
        ProcessPreprocessor(spec, num_workers=num_workers)
        if num_workers
        else ThreadPreprocessor(spec.make(), num_workers=1)
    )
    preprocessor.wait_until_ready()
    start = time.perf_counter() - begin
    preprocessor.submit(0, "x")
    preprocessor.take(block=True)
    begin, begin_here = time.perf_counter(), time.process_time()
    for number, prompt in enumerate(prompts):
        preprocessor.submit(number, prompt)
        if preprocessor.num_pending >= ahead:
            preprocessor.take(block=True)
    while preprocessor.take(block=True):
        pass
    rate = len(prompts) / (time.perf_counter() - begin)
    here = 1000 * (time.process_time() - begin_here) / len(prompts)
    pids = preprocessor.pids if isinstance(preprocessor, ProcessPreprocessor) else []
    rss = max((psutil.Process(pid).memory_info().rss for pid in pids), default=0) / 2**20
    preprocessor.close()
    return start, rate, here, rss


def _prompts(side: int, source: str, count: int) -> list[Any]:
    images = []
    for seed in range(count):
        colours = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(colours).resize((side, side))
        file = io.BytesIO()
        image.save(file, "JPEG")
        images.append(image if source == "pil" else file.getvalue())
    return [("What is in the picture?", image) for image in images]


if __name__ == "__main__":
    main()
