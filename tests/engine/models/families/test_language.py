"""Text-only checkpoints, and the language model of a LLaVA alone, against transformers."""

import json
import random
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.parity import Reference, generate_references
from tests.tiny_llama import generate_texts, save_tiny_llama
from tests.tiny_llava import load_tiny_llava
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig, Response
from vlmflow_engine.errors import ModelError

MAX_NEW_TOKENS = 16
GREEDY = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS)
EOS = 2
TEXT = "how many red shapes are there at the top left is a blue star circle what colour"
WORDS = TEXT.split()


def conversations(count: int) -> list[list[dict[str, str]]]:
    rng = random.Random(3)
    made = []
    for _ in range(count):
        roles = rng.choice((["user"], ["system", "user"], ["user", "assistant", "user"]))
        made.append(
            [
                {"role": role, "content": " ".join(rng.choices(WORDS, k=rng.randint(1, 20)))}
                for role in roles
            ]
        )
    return made


def answer_texts(folder: Path, prompts: list, **engine: object) -> list[Response]:
    config = PytorchEngineConfig(dtype="float32", device_type="cpu", **engine)
    with Pipeline(str(folder), backend_config=config) as pipeline:
        return pipeline(prompts, GREEDY)


def assert_answers_are(responses: list[Response], expected: list[tuple[list[int], list[int]]]):
    for response, (prompt, answer) in zip(responses, expected, strict=True):
        assert response.error_message is None
        assert response.input_token_len == len(prompt)
        ours = [*response.token_ids, *[EOS] * (response.finish_reason == "stop")]
        assert ours == answer


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("tiny_llama"))


def test_a_text_only_checkpoint_answers_as_transformers_does(llama):
    prompts = conversations(24)
    expected = generate_texts(llama, prompts, MAX_NEW_TOKENS)
    assert len({tuple(answer) for _, answer in expected}) > 20
    assert_answers_are(answer_texts(llama, prompts), expected)
    assert_answers_are(answer_texts(llama, prompts, max_prefill_token_num=8), expected)


@pytest.mark.parametrize(
    "overrides",
    [
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
                "rope_theta": 10000.0,
            }
        },
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "rope_theta": 10000.0,
            }
        },
    ],
    ids=["tied", "linear", "llama3", "yarn"],
)
def test_ties_and_scalings_answer_as_transformers_does(overrides, tmp_path):
    folder = save_tiny_llama(tmp_path, **overrides)
    prompts = conversations(6)
    expected = generate_texts(folder, prompts, MAX_NEW_TOKENS)
    assert_answers_are(answer_texts(folder, prompts), expected)


def test_the_parts_of_a_text_are_lines_for_a_template_that_expects_a_str(llama):
    parts = [{"type": "text", "text": "red"}, {"type": "text", "text": "blue"}]
    in_parts, in_one = answer_texts(
        llama, [[{"role": "user", "content": parts}], [{"role": "user", "content": "red\nblue"}]]
    )
    assert in_parts.input_token_len == in_one.input_token_len
    assert in_parts.token_ids == in_one.token_ids


def test_the_context_of_a_text_only_model_is_what_it_was_made_for(tmp_path):
    folder = save_tiny_llama(tmp_path, max_position_embeddings=300)
    config = PytorchEngineConfig(dtype="float32", device_type="cpu")
    with Pipeline(str(folder), backend_config=config) as pipeline:
        assert pipeline.info.session_len == 300


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("mistral", {"sliding_window": 20}),
        ("phi3", {}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
        ("qwen3", {"head_dim": 16}),
    ],
)
def test_llamas_relatives_answer_as_transformers_does(kind, fields, tmp_path):
    save_tiny_llama(tmp_path, kind=kind, **fields)
    prompts = conversations(16)
    expected = generate_texts(tmp_path, prompts, MAX_NEW_TOKENS)
    assert_answers_are(answer_texts(tmp_path, prompts), expected)
    small = {"max_prefill_token_num": 16, "num_gpu_blocks": 16, "block_size": 8}
    assert_answers_are(answer_texts(tmp_path, prompts, **small), expected)


@pytest.mark.parametrize("schedule", [{}, {"max_prefill_token_num": 16, "block_size": 4}], ids=str)
def test_a_sequence_that_outgrows_phi3s_first_context_gets_other_positions(schedule, tmp_path):
    """Some prompts are within it, some beyond, and some outgrow it while they are answered."""
    prompts = conversations(24)
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.1 * index for index in range(8)],
        "long_factor": [2.0 + index for index in range(8)],
        "rope_theta": 10000.0,
    }
    context = 64
    save_tiny_llama(
        tmp_path,
        kind="phi3",
        max_position_embeddings=1024,
        original_max_position_embeddings=context,
        rope_parameters=rope | {"original_max_position_embeddings": context},
    )
    expected = generate_texts(tmp_path, prompts, MAX_NEW_TOKENS)
    lengths = [(len(prompt), len(prompt) + len(answer)) for prompt, answer in expected]
    assert any(end <= context for _, end in lengths)
    assert any(start > context for start, _ in lengths)
    assert any(start < context < end - 1 for start, end in lengths)
    for _ in range(2):
        assert_answers_are(answer_texts(tmp_path, prompts, **schedule), expected)


def test_a_decoder_that_is_not_ours_is_refused(llama, tmp_path):
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    content = json.loads((llama / "config.json").read_text()) | {"model_type": "gpt2"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="a language model of type 'gpt2' is not supported"):
        load_tiny_llava(tmp_path)


def test_a_left_over_tensor_of_a_text_only_checkpoint_is_named(llama, tmp_path):
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    tensors = load_file(llama / "model.safetensors")
    head = tensors["lm_head.weight"].clone()
    save_file({**tensors, "multi_modal_projector.x": head}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="1 tensors have no place.*'multi_modal_projector.x'"):
        load_tiny_llava(tmp_path)


@pytest.fixture(scope="module")
def references(tiny_folder) -> list[Reference]:
    prompts = [
        [
            {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]}
            for message in messages
        ]
        for messages in conversations(12)
    ]
    return generate_references(tiny_folder, prompts, MAX_NEW_TOKENS)


@pytest.fixture(scope="module")
def blind(tiny_folder, tmp_path_factory) -> Path:
    """The tiny LLaVA without any tensor but the decoder's, and without its image processor."""
    folder = tmp_path_factory.mktemp("blind")
    shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    left = {name: tensor for name, tensor in tensors.items() if "language_model." in name}
    assert 0 < len(left) < len(tensors)
    save_file(left, folder / "model.safetensors")
    (folder / "processor_config.json").unlink()
    return folder


@pytest.mark.parametrize("which", ["tiny_folder", "blind"])
def test_the_language_model_of_a_llava_answers_texts_alone(which, references, request):
    folder = request.getfixturevalue(which)
    responses = answer_texts(
        folder, [reference.messages for reference in references], language_model_only=True
    )
    for reference, response in zip(references, responses, strict=True):
        ours = [*response.token_ids, *[EOS] * (response.finish_reason == "stop")]
        assert ours == reference.token_ids
        assert response.input_token_len == len(reference.input_ids)


def test_without_the_option_the_vision_tower_is_asked_for(blind):
    with pytest.raises(ModelError, match="no tensor for 'vision"):
        load_tiny_llava(blind)


@pytest.mark.parametrize(
    ("which", "engine"), [("blind", {"language_model_only": True}), ("llama", {})]
)
def test_an_image_for_a_language_model_is_that_requests_error(which, engine, request):
    folder = request.getfixturevalue(which)
    picture = Image.new("RGB", (20, 20))
    with_image, text = answer_texts(folder, [("what", picture), "what"], **engine)
    assert with_image.error_code == "invalid_request"
    assert "this engine takes text alone" in with_image.error_message
    assert text.error_message is None and text.token_ids
