"""The committed shapes model: small, right, and the same in our engine as in transformers."""

import json
from pathlib import Path

import pytest

from examples.shapes.evaluate import HELD_OUT_SEED, accuracy, answer
from examples.shapes.scenes import held_out
from examples.shapes.train import TRAIN_SEED
from tests import parity
from vlmflow_engine.errors import ConfigError

CHECKPOINT = Path(__file__).parents[2] / "examples" / "shapes" / "checkpoint"
EOS = 2
MAX_NEW_TOKENS = 96


@pytest.fixture(scope="module")
def references():
    """300 held-out records, answered by transformers."""
    conversations = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": scene.draw(192)},
                    {"type": "text", "text": question.text},
                ],
            }
        ]
        for scene, question in held_out(HELD_OUT_SEED + 1, 300)
    ]
    return parity.generate_references(CHECKPOINT, conversations, MAX_NEW_TOKENS)


@pytest.mark.parametrize(
    "engine",
    [
        {"max_batch_size": 1},
        {"max_batch_size": 7},
        {"max_batch_size": 64},
        {"max_batch_size": 64, "enable_prefix_caching": False},
        {"max_batch_size": 64, "max_prefill_token_num": 16},
        {"max_batch_size": 64, "num_gpu_blocks": 30, "preempts": True},
        {
            "max_batch_size": 64,
            "num_gpu_blocks": 30,
            "enable_prefix_caching": False,
            "max_prefill_token_num": 16,
        },
    ],
    ids=["one", "seven", "all", "uncached", "chunks", "preempted", "everything-small"],
)
def test_answers_equal_transformers_token_by_token(references, engine):
    engine = dict(engine)
    preempts = engine.pop("preempts", False)
    responses, stats = parity.answer(CHECKPOINT, references, MAX_NEW_TOKENS, **engine)
    parity.assert_parity(CHECKPOINT, references, responses, EOS)
    assert not preempts or stats.num_preemptions > 0


def test_it_is_as_accurate_as_its_card_says():
    asked = list(held_out(HELD_OUT_SEED, 1000))
    report = accuracy(asked, answer(CHECKPOINT, asked, "auto"))
    assert report["exact_match"] >= 0.95
    assert min(report["by_task"].values()) >= 0.90


def test_weights_in_8_bits_keep_its_accuracy():
    asked = list(held_out(HELD_OUT_SEED, 100))
    try:
        answers = answer(CHECKPOINT, asked, "auto", quant="int8")
    except ConfigError as error:
        pytest.skip(str(error))  # a GPU, or a CPU without VNNI
    assert accuracy(asked, answers)["exact_match"] >= 0.95


def test_it_was_never_trained_on_what_it_is_measured_on():
    history = json.loads((CHECKPOINT / "training.json").read_text())
    assert TRAIN_SEED + history["seed"] != HELD_OUT_SEED
    assert [point["step"] for point in history["curve"]][-1] == history["steps"]


def test_it_is_small_and_holds_all_that_transformers_looks_for():
    assert sum(path.stat().st_size for path in CHECKPOINT.rglob("*")) < 12 * 2**20
    names = {path.name for path in CHECKPOINT.iterdir()}
    assert names >= {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
