"""transformers.generate as well as it can be used: sorted static batches of the best size."""

import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.gpu.checkpoint import processor_for_transformers
from benchmarks.gpu.workload import GpuRequest


class Peer:
    """transformers' model and processor of a checkpoint, in bfloat16."""

    def __init__(self, folder: Path, kind: str, device: str) -> None:
        from transformers import AutoModelForImageTextToText

        self._device = device
        self._processor = processor_for_transformers(folder, kind)
        self._processor.tokenizer.padding_side = "left"
        # Straight to the device where what that takes is installed; else by way of the host.
        placed = {"device_map": device} if find_spec("accelerate") else {}
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16, **placed)
        self._model = model.to(device).eval()

    @property
    def image_processor(self) -> str:
        """Its class, which says whether it is torchvision's or Pillow's."""
        return type(self._processor.image_processor).__name__

    def measure(
        self,
        requests: Sequence[GpuRequest],
        probe: Sequence[GpuRequest],
        batch_sizes: Sequence[int],
    ) -> dict[str, Any]:
        """Find the best batch size on `probe`, then answer all requests with it.

        batch_sizes  ascending; those above the probe's length are tried on all requests where the
                     probe's best was its largest, so that a small probe does not hold it back
        """
        fitting = [size for size in batch_sizes if size <= len(probe)]
        probed = self._descend(probe, fitting[::-1])
        best = min(probed, key=lambda size: probed[size])
        seconds = {best: self._timed(requests, best)}
        if best == fitting[-1]:
            larger = [size for size in batch_sizes if size > len(probe)]
            seconds |= self._descend(requests, larger, at_most=seconds[best])
        best = min(seconds, key=lambda size: seconds[size])
        return {
            "batch_size": best,
            "seconds": seconds[best],
            "output_tokens": sum(request.num_new_tokens for request in requests),
            # None: out of memory.
            "probe_seconds": {str(size): _finite(value) for size, value in probed.items()},
            "all_seconds": {str(size): _finite(value) for size, value in seconds.items()},
        }

    def answer(self, batch: Sequence[GpuRequest]) -> None:
        """Generate as many tokens as the batch's longest answer has."""
        images = []
        for request in batch:
            with Image.open(request.image) as image:
                images.append(image.convert("RGB"))
        texts = [self._template(request.text) for request in batch]
        inputs = self._processor(text=texts, images=images, padding=True, return_tensors="pt")
        longest = max(request.num_new_tokens for request in batch)
        output = self._model.generate(
            **inputs.to(self._device, torch.bfloat16),
            max_new_tokens=longest,
            min_new_tokens=longest,
            do_sample=False,
        )
        num_new_tokens = output.shape[1] - inputs["input_ids"].shape[1]
        if num_new_tokens != longest:
            raise RuntimeError(f"{num_new_tokens} tokens where {longest} were asked")

    def _template(self, text: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        rendered: str = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return rendered

    def _descend(
        self, requests: Sequence[GpuRequest], sizes: Sequence[int], at_most: float = float("inf")
    ) -> dict[int, float]:
        """Seconds by batch size, one after another for as long as they get better."""
        seconds: dict[int, float] = {}
        for size in sizes:
            try:
                seconds[size] = self._timed(requests, size)
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                seconds[size] = float("inf")
                if at_most < float("inf"):  # larger ones follow
                    break
                continue
            if seconds[size] > at_most:
                break
            at_most = seconds[size]
        return seconds

    def _timed(self, requests: Sequence[GpuRequest], size: int) -> float:
        """Batches of answers of similar length; each runs to the longest of its own."""
        ordered = sorted(requests, key=lambda request: request.num_new_tokens)
        start = time.perf_counter()
        for index in range(0, len(ordered), size):
            self.answer(ordered[index : index + size])
        if self._device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        print(f"transformers: {len(ordered)} requests, batch {size}: {seconds:.1f} s", flush=True)
        return seconds


def _finite(seconds: float) -> float | None:
    return seconds if seconds < float("inf") else None
