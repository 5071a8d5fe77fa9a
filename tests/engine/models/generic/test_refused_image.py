"""An image that transformers' vision side refuses fails its own request, also from the caches."""

import numpy as np
import pytest
from PIL import Image

from tests.tiny_generic import save_tiny_generic
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig
from vlmflow_engine.errors import MediaError
from vlmflow_engine.models.generic.model import GenericModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_generic("idefics3", tmp_path_factory.mktemp("idefics3"))


@pytest.fixture
def images():
    pixels = np.random.default_rng(3)
    return [Image.fromarray(pixels.integers(0, 256, (40, 60, 3), np.uint8)) for _ in range(3)]


@pytest.mark.parametrize("what", ["raises", "too few rows"])
def test_its_neighbours_are_answered_as_without_it(folder, images, what, monkeypatch):
    config = PytorchEngineConfig(dtype="float32", device_type="cpu", num_preprocess_workers=0)
    generation = GenerationConfig(max_new_tokens=4)
    prompts = [(f"what is this {number}", image) for image in images for number in range(2)]
    with Pipeline(str(folder), backend_config=config) as pipeline:
        expected = pipeline(prompts, generation)
    encode = GenericModel._encode
    refused: list[float] = []  # what the first image adds up to

    def refuse_the_first(self, values, arrays):
        rows = encode(self, values, arrays)
        refused.append(float(values.sum()))
        if refused[-1] != refused[0]:
            return rows
        if what == "raises":
            raise MediaError("no such image")
        return rows[1:]

    with Pipeline(str(folder), backend_config=config) as pipeline:
        monkeypatch.setattr(GenericModel, "_encode", refuse_the_first)
        rounds = [pipeline(prompts, generation) for _ in range(2)]
    reason = "no such image" if what == "raises" else "28 placeholders for 27 embeddings"
    for answers in rounds:
        assert [reason in (answer.error_message or "") for answer in answers] == [True] * 2 + [
            False
        ] * 4
        assert [a.token_ids for a in answers[2:]] == [a.token_ids for a in expected[2:]]
