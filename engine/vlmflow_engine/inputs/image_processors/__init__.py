"""From an RGB image to the pixels of a family of models. One processor a file; no torch."""

from collections.abc import Sequence
from pathlib import Path

from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.inputs.image_processors.anyres import AnyresImageProcessor
from vlmflow_engine.inputs.image_processors.base import ImageProcessor
from vlmflow_engine.inputs.image_processors.clip import ClipImageProcessor
from vlmflow_engine.inputs.image_processors.generic import GenericImageProcessor
from vlmflow_engine.inputs.image_processors.internvl import (
    InternVLChatImageProcessor,
    InternVLImageProcessor,
)
from vlmflow_engine.inputs.image_processors.llava_square import LlavaSquareImageProcessor
from vlmflow_engine.inputs.image_processors.qwen2_vl import Qwen2VLImageProcessor

PROCESSORS: Sequence[type[ImageProcessor]] = (
    AnyresImageProcessor,
    ClipImageProcessor,
    GenericImageProcessor,
    InternVLImageProcessor,
    InternVLChatImageProcessor,
    LlavaSquareImageProcessor,
    Qwen2VLImageProcessor,
)


def load_image_processor(folder: Path, image_format: ImageFormat) -> ImageProcessor:
    """Make the processor that a family asks for. Raises ModelError."""
    by_kind = {processor.kind: processor for processor in PROCESSORS}
    return by_kind[image_format.processor].from_folder(folder, image_format.parameters)
