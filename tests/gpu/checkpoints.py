"""The families' tiny checkpoints, with conversations that each of them is asked on a device."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from tests import tiny_internvl, tiny_llava, tiny_llava_next, tiny_qwen2_vl
from tests.parity import SIZES, Reference, conversations, generate_references


@dataclass(frozen=True)
class TinyFamily:
    """One family's checkpoint and what is particular about it."""

    name: str
    save: Callable[[Path], Path]
    processor: Any  # transformers' class of its processor
    eos_token_id: int
    sizes: tuple[tuple[int, int], ...]  # of images

    def references(self, folder: Path, count: int, device: str) -> list[Reference]:
        """transformers' answers, its model on the device and its images Pillow's as ours are."""
        return generate_references(
            folder,
            conversations(count, self.sizes),
            16,
            processor=self.processor.from_pretrained(folder, backend="pil"),
            device=device,
        )


_LARGE = ((28, 28), (20, 400), (400, 20), (97, 131), (112, 112), (200, 150), (60, 57), (640, 480))


def _save_internvl(folder: Path) -> Path:
    return tiny_internvl.save_hf(folder, tiny_internvl.make_internvl())


FAMILIES = (
    TinyFamily("llava", tiny_llava.save_tiny_llava, AutoProcessor, 2, SIZES),
    TinyFamily("llava_next", tiny_llava_next.save_tiny_llava_next, AutoProcessor, 2, _LARGE),
    TinyFamily("internvl", _save_internvl, tiny_internvl.ImagesOnlyProcessor, 2, _LARGE),
    *(
        TinyFamily(
            kind,
            partial(tiny_qwen2_vl.save_tiny_qwen2_vl, kind=kind),
            tiny_qwen2_vl.ImagesOnlyProcessor,
            tiny_qwen2_vl.EOS,
            _LARGE,
        )
        for kind in tiny_qwen2_vl.KINDS
    ),
)
