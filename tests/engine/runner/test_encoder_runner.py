"""Image embeddings: made as transformers makes them, kept by content hash, put in their places."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.tiny_llava import CPU, make_tiny_llava, tiny_processor
from vlmflow_engine.image_format import Normalisation
from vlmflow_engine.layers.embedding import put_rows
from vlmflow_engine.models.registry import load_model, read_config
from vlmflow_engine.request import ImageInput
from vlmflow_engine.runner.batch import EmbeddingRows
from vlmflow_engine.runner.encoder_runner import EncoderRunner, _groups

NUM_ROWS, HIDDEN_SIZE = 36, 64


def make_image(number: int) -> ImageInput:
    pixels = np.random.default_rng(number).integers(0, 256, (96, 96, 3), np.uint8)
    return ImageInput(b"image %d" % number, pixels, offset=0, num_tokens=NUM_ROWS)


def make_runner(model, dtype: torch.dtype = torch.float32) -> EncoderRunner:
    processor = tiny_processor().image_processor
    normalisation = Normalisation(
        processor.rescale_factor, tuple(processor.image_mean), tuple(processor.image_std)
    )
    return EncoderRunner(model, normalisation, dtype=dtype, device=CPU)


@pytest.fixture
def runner(tiny_model) -> EncoderRunner:
    return make_runner(tiny_model)


@torch.inference_mode()
def encode(runner: EncoderRunner, *images: ImageInput) -> None:
    runner.encode(images)


def embeddings_of(
    runner: EncoderRunner, image: ImageInput, dtype: torch.dtype = torch.float32
) -> Tensor:
    """All rows that the runner keeps of an image."""
    embeds = torch.full((NUM_ROWS, HIDDEN_SIZE), torch.nan, dtype=dtype)
    put_rows(embeds, runner.rows_of([EmbeddingRows(0, image.content_hash, 0, NUM_ROWS)]))
    return embeds


@torch.inference_mode()
def expected_embeddings(*images: ImageInput) -> Tensor:
    """Transformers' image processor, tower and projector."""
    pictures = [Image.fromarray(image.pixels) for image in images]
    pixels = tiny_processor().image_processor(pictures, return_tensors="pt")["pixel_values"]
    return torch.stack(make_tiny_llava().get_image_features(pixels).pooler_output)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    atol = tolerance * expected.abs().max().item()
    torch.testing.assert_close(actual.float(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("num_images", [1, 3, 8, 9, 17])
def test_embeddings_are_those_of_transformers_however_many_come_at_once(num_images, runner):
    images = [make_image(number) for number in range(num_images)]
    encode(runner, *images)
    for image, expected in zip(images, expected_embeddings(*images), strict=True):
        assert_close(embeddings_of(runner, image), expected)


def test_a_bfloat16_tower_gives_nearly_the_same(tiny_folder):
    model = load_model(tiny_folder, read_config(tiny_folder), dtype=torch.bfloat16, device=CPU)
    runner, image = make_runner(model, torch.bfloat16), make_image(0)
    encode(runner, image)
    embeddings = embeddings_of(runner, image, torch.bfloat16)
    assert_close(embeddings, expected_embeddings(image)[0], tolerance=0.05)


def test_an_image_stays_until_it_is_evicted(runner):
    kept, dropped, later = (make_image(number) for number in range(3))
    encode(runner, kept, dropped)
    before = embeddings_of(runner, kept)
    runner.evict([dropped.content_hash, b"never encoded"])
    encode(runner, later)
    assert torch.equal(embeddings_of(runner, kept), before)
    with pytest.raises(KeyError):
        embeddings_of(runner, dropped)


def test_an_image_keeps_no_memory_of_those_encoded_with_it(runner):
    encode(runner, *(make_image(number) for number in range(4)))
    for rows in runner._embeddings.values():
        assert rows.untyped_storage().nbytes() == NUM_ROWS * HIDDEN_SIZE * rows.itemsize


def test_rows_of_images_go_over_their_placeholders_and_nowhere_else(runner):
    first, second = make_image(0), make_image(1)
    encode(runner, first, second)
    embeds = torch.full((20, HIDDEN_SIZE), 7.0)
    rows = runner.rows_of(
        [
            EmbeddingRows(2, first.content_hash, 30, 36),
            EmbeddingRows(8, second.content_hash, 0, 1),
            EmbeddingRows(15, first.content_hash, 4, 9),
        ]
    )
    put_rows(embeds, rows)
    expected = torch.full_like(embeds, 7.0)
    expected[2:8] = embeddings_of(runner, first)[30:36]
    expected[8:9] = embeddings_of(runner, second)[:1]
    expected[15:20] = embeddings_of(runner, first)[4:9]
    assert torch.equal(embeds, expected)


def test_a_pass_takes_so_many_tiles_and_so_many_pixels():
    def image(number: int, *shape: int) -> ImageInput:
        return ImageInput(bytes([number]), np.zeros((*shape, 3), np.uint8), 0, 1)

    small = [image(number, 8, 8) for number in range(5)]
    tiled = image(5, 6, 8, 8)
    large = [image(6 + number, 3000, 4000) for number in range(3)]
    grouped = list(_groups([*small, tiled, small[0], *large], 4))
    assert [len(group) for group in grouped] == [4, 1, 1, 2, 1, 1]
    assert grouped[2] == [tiled]
    assert [item for group in grouped for item in group] == [*small, tiled, small[0], *large]


class SmallDevice:
    """A model on a device that holds so many images in a pass, and some images not at all."""

    def __init__(self, model, *, capacity: int, too_large: tuple[int, ...] = ()) -> None:
        self.decoder = model.decoder
        self._model = model
        self._capacity = capacity
        self._too_large = [expected_embeddings(make_image(number)) for number in too_large]
        self.passes: list[int] = []

    def encode_images(self, images):
        self.passes.append(len(images))
        made = self._model.encode_images(images)
        is_too_large = any(
            torch.allclose(rows, large[0], atol=1e-4) for rows in made for large in self._too_large
        )
        if len(images) > self._capacity or is_too_large:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return made


@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_a_pass_too_large_for_the_device_is_halved_until_it_fits(capacity, tiny_model, caplog):
    device = SmallDevice(tiny_model, capacity=capacity)
    runner, images = make_runner(device), [make_image(number) for number in range(8)]
    encode(runner, *images)
    assert max(size for size in device.passes if size <= capacity) >= capacity // 2 + 1
    assert "8 images in one pass" in caplog.text
    assert runner.refusal(images) is None
    for image, expected in zip(images, expected_embeddings(*images), strict=True):
        assert_close(embeddings_of(runner, image), expected)


def test_an_image_too_large_for_the_device_is_refused_alone(tiny_model):
    runner = make_runner(SmallDevice(tiny_model, capacity=8, too_large=(2,)))
    images = [make_image(number) for number in range(5)]
    encode(runner, *images)
    reason = runner.refusal([images[2]])
    assert reason is not None and "too large for the device's memory; lower" in reason
    for number in (0, 1, 3, 4):
        assert runner.refusal([images[number]]) is None
        assert_close(embeddings_of(runner, images[number]), expected_embeddings(images[number])[0])
