"""A random InternVL in Hugging Face form answers as transformers does, whatever the schedule."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.inputs.pictures import noise
from tests.parity import (
    CASES,
    answer,
    assert_parity,
    assert_schedule,
    conversations,
    generate_references,
)
from tests.tiny_internvl import ROWS, SIDE, ImagesOnlyProcessor, make_internvl, save_hf
from tests.tiny_llava import CPU, compute_logits
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig
from vlmflow_engine.models.family import ImagePixels
from vlmflow_engine.models.registry import load_model, read_config

MAX_NEW_TOKENS = 16
EOS = 2
PART, TEXT_PART = {"type": "image"}, {"type": "text", "text": "what is this"}
# One tile, several, as many as there may be, and one side twenty times the other.
SIZES = ((56, 56), (300, 56), (100, 61), (61, 100), (160, 120), (400, 20), (20, 400), (57, 112))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("tiny_internvl"), make_internvl())


@pytest.fixture(scope="module")
def references(folder):
    references = _references(folder, 44)
    answers = {tuple(reference.token_ids) for reference in references}
    assert len(answers) > 36, "answers that do not depend on the prompt prove nothing"
    return references


@pytest.mark.parametrize(("schedule", "prefix_caching"), CASES)
def test_answers_equal_transformers_token_by_token(folder, references, schedule, prefix_caching):
    assert_schedule(
        folder,
        references,
        schedule,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=EOS,
        enable_prefix_caching=prefix_caching,
        num_gpu_blocks=80,
        encoder_cache_rows=13 * ROWS,
    )


@pytest.mark.parametrize(
    ("text", "tower", "fields"),
    [
        ("llama", "6b", {"vision_feature_layer": -2}),
        ("qwen3", "6b", {"tie_word_embeddings": True}),
        ("phi3", "300m", {"projector_hidden_act": "relu"}),
        ("internlm2", "300m", {"text_config": {"attention_bias": True}}),
    ],
)
def test_every_language_model_and_tower_answers_as_in_transformers(text, tower, fields, tmp_path):
    folder = save_hf(tmp_path, make_internvl(text, tower, **fields), max_patches=4)
    references = _references(folder, 8)
    responses, _ = answer(folder, references, MAX_NEW_TOKENS, max_batch_size=4)
    assert_parity(folder, references, responses, EOS)


@pytest.mark.parametrize("head", ["lm_head", "language_model.lm_head"])
def test_tensors_are_found_under_the_names_of_every_generation_of_transformers(head, tmp_path):
    """save_pretrained writes the oldest names; checkpoints with the model's own exist too."""
    model = make_internvl()
    folder = save_hf(tmp_path, model)
    expected = _load(folder)
    tensors = {
        name.replace("lm_head", head) if name.startswith("lm_head") else name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
    }
    assert not tensors.keys() & load_file(folder / "model.safetensors").keys() - {f"{head}.weight"}
    save_file(tensors, folder / "model.safetensors")
    loaded = _load(folder)
    pixels = ImagePixels(torch.randn(3, 3, SIDE, SIDE), ())
    with torch.inference_mode():
        assert torch.equal(loaded.encode_images([pixels])[0], expected.encode_images([pixels])[0])
    ids = [torch.arange(5, 40)]
    assert torch.equal(
        compute_logits(loaded.decoder, ids)[0], compute_logits(expected.decoder, ids)[0]
    )


def test_the_same_text_about_another_image_has_another_answer(folder):
    images = [noise(160, 120, seed=seed) for seed in range(6)]
    config = PytorchEngineConfig(dtype="float32", device_type="cpu")
    with Pipeline(str(folder), backend_config=config) as pipeline:
        prompts = [("what is this", image) for image in images]
        answers = pipeline(prompts, GenerationConfig(max_new_tokens=12))
        few = pipeline(
            [
                [{"role": "user", "content": [{**PART, "image": image, **options}, TEXT_PART]}]
                for image in images[:1]
                for options in ({}, {"max_dynamic_patch": 2}, {"detail": "low"})
            ],
            GenerationConfig(max_new_tokens=1),
        )
    assert len({response.text for response in answers}) == len(images)
    # 4 x 3 tiles and a thumbnail; one tile; 3 x 2 and a thumbnail.
    lengths = [response.input_token_len for response in few]
    assert [lengths[0] - length for length in lengths] == [0, 12 * ROWS, 6 * ROWS]


def _load(folder):
    return load_model(folder, read_config(folder), dtype=torch.float32, device=CPU)


def _references(folder, count):
    processor = ImagesOnlyProcessor.from_pretrained(folder)
    return generate_references(
        folder, conversations(count, SIZES), MAX_NEW_TOKENS, processor=processor
    )
