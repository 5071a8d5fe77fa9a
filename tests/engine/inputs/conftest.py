"""A checkpoint's folder without weights, transformers' own processor for it, and builders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor, LlavaProcessor

from examples.shapes.model import IMAGE_SIDE, NUM_PATCHES, make_processor
from vlmflow_engine.image_format import ImageFormat
from vlmflow_engine.inputs.builder import InputBuilder, MediaFetcher
from vlmflow_engine.inputs.fetcher import NamedFetcher
from vlmflow_engine.inputs.worker_frames import BuilderSpec
from vlmflow_engine.vl.fetch import fetch_image


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer, processor and chat template."""
    folder = tmp_path_factory.mktemp("checkpoint")
    make_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def processor(checkpoint: Path) -> LlavaProcessor:
    """What transformers makes of the folder: the oracle."""
    return AutoProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def make_builder(checkpoint: Path, processor: LlavaProcessor) -> Callable[..., InputBuilder]:
    """Make a builder for the folder, or for another one; nothing is cached in it yet."""

    def make(
        fetch: MediaFetcher = fetch_image,
        *,
        folder: Path = checkpoint,
        side: int = IMAGE_SIDE,
        max_image_pixels: int = 1_000_000,
        **options: Any,
    ) -> InputBuilder:
        form = ImageFormat(
            token_id=processor.image_token_id,
            processor="clip",
            parameters={"side": side, "num_rows": NUM_PATCHES},
        )
        return InputBuilder(folder, form, fetch, max_image_pixels=max_image_pixels, **options)

    return make


@pytest.fixture(scope="session")
def spec(checkpoint: Path, processor: LlavaProcessor) -> BuilderSpec:
    """How a worker makes a builder whose images are those of `fetchers.by_word`."""
    return BuilderSpec(
        folder=checkpoint,
        image_format=ImageFormat(
            token_id=processor.image_token_id,
            processor="clip",
            parameters={"side": IMAGE_SIDE, "num_rows": NUM_PATCHES},
        ),
        fetch=NamedFetcher("tests.engine.inputs.fetchers:by_word"),
        max_image_pixels=4_000_000,
    )


@pytest.fixture(scope="session")
def builder(make_builder: Callable[..., InputBuilder]) -> InputBuilder:
    """A builder that all tests share."""
    return make_builder()
