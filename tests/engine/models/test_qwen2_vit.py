"""The towers' embeddings are transformers', whatever is packed with an image and however cut."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tests.engine.inputs.pictures import noise
from tests.tiny_llava import CPU
from tests.tiny_qwen2_vl import (
    KINDS,
    ImagesOnlyProcessor,
    make_tiny_qwen2_vl,
    save_tiny_qwen2_vl,
)
from vlmflow_engine.inputs.image_processors import load_image_processor
from vlmflow_engine.layers.embedding import put_rows
from vlmflow_engine.models import qwen2_vit
from vlmflow_engine.models.family import ImagePixels
from vlmflow_engine.models.registry import image_format, load_model, read_config
from vlmflow_engine.request import ImageInput
from vlmflow_engine.runner.batch import EmbeddingRows
from vlmflow_engine.runner.encoder_runner import EncoderRunner

SIZES = ((28, 28), (20, 400), (400, 20), (97, 131), (112, 112), (200, 150), (300, 200))


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return save_tiny_qwen2_vl(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def encode(folder):
    """Encode pictures as the engine does, processor and normalising included."""
    return make_encoder(folder, torch.float32)


def make_encoder(folder, dtype):
    config = read_config(folder)
    processor = load_image_processor(folder, image_format(config))
    model = load_model(folder, config, dtype=dtype, device=CPU)

    @torch.inference_mode()
    def encode(*pictures: Image.Image) -> list[Tensor]:
        runner = EncoderRunner(model, processor.normalisation, dtype=dtype, device=CPU)
        images = []
        for number, picture in enumerate(pictures):
            processed = processor(picture, {})
            images.append(
                ImageInput(
                    b"%d" % number, processed.pixels, 0, processed.num_rows, processed.layout
                )
            )
        runner.encode(images)  # raises if placeholders and embeddings are not as many
        rows = []
        for image in images:
            embeds = torch.full((image.num_tokens, 64), torch.nan, dtype=dtype)
            put_rows(
                embeds,
                runner.rows_of([EmbeddingRows(0, image.content_hash, 0, image.num_tokens)]),
            )
            rows.append(embeds)
        return rows

    return encode


@pytest.fixture(scope="module")
def expected(folder):
    return make_reference(folder, torch.float32)


def make_reference(folder, dtype):
    processor = ImagesOnlyProcessor.from_pretrained(folder).image_processor
    model = make_tiny_qwen2_vl(read_config(folder).model_type).to(dtype)

    @torch.inference_mode()
    def reference(*pictures: Image.Image) -> list[Tensor]:
        inputs = processor(list(pictures), return_tensors="pt")
        return model.get_image_features(**inputs).pooler_output

    return reference


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        atol = tolerance * theirs.abs().max().item()
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=atol)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]} x {size[1]}")
def test_embeddings_are_those_of_transformers(size, encode, expected):
    picture = noise(*size)
    assert_close(encode(picture), expected(picture))


def test_images_packed_together_do_not_see_each_other(encode, expected):
    pictures = [noise(*size) for size in (*SIZES, SIZES[2], SIZES[3])]
    together = encode(*pictures)
    assert_close(together, expected(*pictures))
    assert_close(together, [encode(picture)[0] for picture in pictures])


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.lists(st.tuples(st.integers(10, 300), st.integers(10, 300)), min_size=1, max_size=4)
)
def test_every_image_has_an_embedding_for_each_placeholder(sizes, encode, expected):
    pictures = [noise(*size) for size in sizes]
    assert_close(encode(*pictures), expected(*pictures))


def test_work_cut_into_pieces_gives_the_same(encode, expected, monkeypatch):
    monkeypatch.setattr(qwen2_vit, "_ROWS", 24)
    monkeypatch.setattr(qwen2_vit, "_PATCHES_PER_PASS", 100)
    pictures = [noise(*size) for size in SIZES]
    assert_close(encode(*pictures), expected(*pictures))


def test_images_are_packed_up_to_so_many_patches(folder, monkeypatch):
    model = load_model(folder, read_config(folder), dtype=torch.float32, device=CPU)
    monkeypatch.setattr(qwen2_vit, "_PATCHES_PER_PASS", 40)
    passes = []
    encode = type(model.vision)._encode
    monkeypatch.setattr(
        type(model.vision),
        "_encode",
        lambda tower, images: passes.append(len(images)) or encode(tower, images),
    )
    layouts = [(1, 2, 2), (1, 3, 2), (1, 4, 4), (1, 1, 1), (1, 1, 9), (1, 5, 5)]
    with torch.inference_mode():
        rows = model.encode_images(
            [
                ImagePixels(torch.zeros(1, 3, 28 * height, 28 * width), (1, height, width))
                for _, height, width in layouts
            ]
        )
    assert [len(part) for part in rows] == [height * width for _, height, width in layouts]
    assert passes == [2, 1, 2, 1]


def test_a_bfloat16_tower_is_no_further_from_float32_than_transformers(folder, expected):
    pictures = [noise(*size) for size in SIZES]
    exact = torch.cat(expected(*pictures))

    def error(rows: list[Tensor]) -> float:
        return float((torch.cat(rows).float() - exact).square().mean().sqrt())

    ours = error(make_encoder(folder, torch.bfloat16)(*pictures))
    theirs = error(make_reference(folder, torch.bfloat16)(*pictures))
    assert ours < 1.2 * theirs
    assert ours < 0.03 * float(exact.square().mean().sqrt())


def test_the_two_frames_of_an_image_are_one_with_the_sum_of_their_weights(folder):
    model = load_model(folder, read_config(folder), dtype=torch.float32, device=CPU)
    theirs = make_tiny_qwen2_vl(read_config(folder).model_type).model.visual.patch_embed
    pixels = torch.from_numpy(
        np.random.default_rng(0).standard_normal((1, 3, 56, 84)).astype(np.float32)
    )
    with torch.inference_mode():
        ours = model.vision._embed(ImagePixels(pixels, (1, 2, 3)))
        frames = pixels.expand(2, 3, 56, 84).transpose(0, 1)  # [3, 2, height, width]
        expected = torch.nn.functional.conv3d(frames, theirs.proj.weight, stride=(2, 14, 14))
    units = expected.view(32, 2, 2, 3, 2).permute(1, 3, 2, 4, 0).reshape(6, -1)
    torch.testing.assert_close(ours, units, rtol=1e-5, atol=1e-5)
