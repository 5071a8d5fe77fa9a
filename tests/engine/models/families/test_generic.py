"""Families that run through transformers' code answer as transformers does, whatever the batch."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BlipConfig,
    Florence2Config,
    Gemma3Config,
    MllamaConfig,
    Olmo2Config,
    PaliGemmaConfig,
    Qwen3_5Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tests.parity import SCHEDULES, assert_schedule, conversations, generate_references
from tests.tiny_generic import MAKERS, save_tiny_generic
from tests.tiny_llava import TEXT_CONFIG, compute_logits, randomise
from vlmflow_engine import Pipeline, PytorchEngineConfig
from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.families.generic import GenericFamily
from vlmflow_engine.models.generic.processor_class import load_processor
from vlmflow_engine.models.registry import family_of, image_format, load_model, read_config

# Of transformers' own processors, in how they count on tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MAX_NEW_TOKENS = 16
EOS = 2
# (width, height): what is cut into tiles, what is not, what is narrow.
SIZES = ((96, 96), (40, 100), (120, 50), (64, 65), (33, 32), (30, 90), (200, 140))
FEW_SCHEDULES = ("seven", "everything-small")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Make each checkpoint, and its references, once."""
    made = {}

    def make(name, count):
        if (name, count) not in made:
            folder = tmp_path_factory.mktemp(name)
            save_tiny_generic(name, folder)
            references = generate_references(
                folder,
                conversations(count, SIZES),
                MAX_NEW_TOKENS,
                processor=load_processor(folder),
            )
            answers = {tuple(reference.token_ids) for reference in references}
            assert len(answers) > 0.8 * count, "answers that do not depend on the prompt"
            made[name, count] = folder, references
        return made[name, count]

    return make


def assert_parity(folder, references, schedule, prefix_caching):
    longest = max(len(reference.input_ids) for reference in references) + MAX_NEW_TOKENS
    # Some ask the same again, for a prefix cache that is hit whatever becomes of the images.
    asked = [one for reference in references[:3] for one in (reference, reference)]
    assert_schedule(
        folder,
        [*asked, *references[3:]],
        schedule,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=EOS,
        enable_prefix_caching=prefix_caching,
        num_gpu_blocks=-(-longest // 16) + 2,
        encoder_cache_rows=160,  # of images that are processed together, all at once
        num_preprocess_workers=0,  # transformers takes its time to be imported
    )


@pytest.mark.slow
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", MAKERS)
def test_answers_equal_transformers_token_by_token(checkpoint, name, schedule, prefix_caching):
    assert_parity(*checkpoint(name, 40), schedule, prefix_caching)


@pytest.mark.parametrize("schedule", FEW_SCHEDULES)
@pytest.mark.parametrize("name", ["idefics3", "llava-onevision"])
def test_some_answers_equal_transformers_token_by_token(checkpoint, name, schedule):
    assert_parity(*checkpoint(name, 12), schedule, True)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Gemma3Config(), "so that the tokens of an image see each other"),
        (PaliGemmaConfig(), "its decoder's tokens see later ones"),
        (MllamaConfig(), "its decoder takes 'cross_attention_states' beside the tokens"),
        (BlipConfig(), "takes no attention function from outside"),
        (Florence2Config(), "it has an encoder that its decoder looks at through cross-attention"),
        (Qwen3_5Config(), "its decoder has layers of type 'linear_attention'"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_what_cannot_run_is_refused_before_its_weights_are_read(config, reason, tmp_path):
    architecture = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[config.model_type]
    content = config.to_dict() | {"architectures": [architecture]}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError) as caught:
        read_config(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'config.json'}: {architecture} cannot run through")
    assert reason in message


def test_a_language_model_of_no_family_answers_as_transformers_does(tmp_path):
    model = AutoModelForCausalLM.from_config(Olmo2Config(**TEXT_CONFIG)).eval()
    randomise(model, seed=0)
    model.save_pretrained(tmp_path)
    config = read_config(tmp_path)
    assert image_format(config) is None
    assert isinstance(family_of(config), GenericFamily)
    prompt = torch.arange(5, 40)
    with torch.inference_mode():
        ours = load_model(tmp_path, config, dtype=torch.float32, device=torch.device("cpu"))
        (actual,) = compute_logits(ours.decoder, [prompt])
        torch.testing.assert_close(actual, model(prompt[None]).logits[0], rtol=0, atol=2e-5)


def test_adapters_are_refused_in_so_many_words(checkpoint, tmp_path):
    folder, _ = checkpoint("idefics3", 12)
    config = PytorchEngineConfig(
        dtype="float32",
        device_type="cpu",
        num_preprocess_workers=0,
        adapters={"mine": str(tmp_path)},
    )
    with pytest.raises(ModelError, match="through transformers' own code takes no LoRA adapters"):
        Pipeline(str(folder), backend_config=config)
