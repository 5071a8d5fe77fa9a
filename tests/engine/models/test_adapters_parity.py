"""Requests of several adapters and of none, in one engine, answer as PEFT's merged weights do."""

from collections.abc import Sequence as AbstractSequence
from pathlib import Path
from typing import Any

import pytest

from tests.engine.models.families.test_llava import EOS
from tests.parity import Reference, assert_parity, conversations, generate_references
from tests.peft_adapters import save_adapter_and_merged
from vlmflow_engine import GenerationConfig, PytorchEngineConfig, Response
from vlmflow_engine.engine import Engine
from vlmflow_engine.errors import InvalidRequestError
from vlmflow_engine.inputs.builder import InputBuilder
from vlmflow_engine.models.registry import image_format, read_config
from vlmflow_engine.request import Request
from vlmflow_engine.vl.fetch import fetch_image

MAX_NEW_TOKENS = 12
ADAPTERS: dict[str, dict[str, Any]] = {
    "everything": {"seed": 1},
    "some": {
        "seed": 2,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "exclude_modules": ".*vision_tower.*",
    },
    "patterns": {
        "seed": 3,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 7, "layers.1.mlp.up_proj": 1},
        "alpha_pattern": {"k_proj": 3},
    },
}
NAMES = (None, *ADAPTERS)


class AdapterEngine:
    """An engine over a checkpoint and its adapters, asked with conversations."""

    def __init__(self, folder: Path, adapters: dict[str, str], **engine: Any) -> None:
        model_config = read_config(folder)
        form = image_format(model_config)
        self.builder = InputBuilder(folder, form, fetch_image, max_image_pixels=1 << 28)
        self.engine = Engine(
            folder,
            model_config,
            PytorchEngineConfig(dtype="float32", device_type="cpu", adapters=adapters, **engine),
            self.builder.image_processor.normalisation,
            eos_token_ids=frozenset([EOS]),
            rows_per_image=self.builder.max_image_rows,
        )

    def request(self, request_id: int, messages: Any, adapter_name: str | None) -> Request:
        prepared = self.builder.build(messages)
        return Request(
            request_id=request_id,
            prompt_token_ids=prepared.token_ids,
            images=prepared.images,
            generation=GenerationConfig(max_new_tokens=MAX_NEW_TOKENS),
            seed=0,
            adapter_name=adapter_name,
        )

    def answer(self, prompts: AbstractSequence[tuple[Any, str | None]]) -> list[Response]:
        """Answer all (conversation, adapter) in one go."""
        for request_id, prompt in enumerate(prompts):
            self.engine.add_request(self.request(request_id, *prompt))
        finished = {}
        while self.engine.num_unfinished:
            for sequence in self.engine.step():
                finished[sequence.request.request_id] = sequence
        return [
            Response(
                text="",
                generate_token_len=sequence.num_output_tokens,
                input_token_len=sequence.num_prompt_tokens,
                finish_reason=sequence.finish_reason,
                token_ids=sequence.output_token_ids[
                    : -1 if sequence.finish_reason == "stop" else None
                ],
                cached_tokens=sequence.num_cached_tokens,
            )
            for _, sequence in sorted(finished.items())
        ]


@pytest.fixture(scope="module")
def folders(tiny_folder, tmp_path_factory) -> dict[str | None, Path]:
    """Checkpoints with an adapter merged into them; the adapters beside them, under `adapter`."""
    made: dict[str | None, Path] = {None: tiny_folder}
    for name, lora in ADAPTERS.items():
        made[name] = tmp_path_factory.mktemp(name)
        save_adapter_and_merged(made[name] / "adapter", made[name], **lora)
    return made


@pytest.fixture(scope="module")
def adapters(folders) -> dict[str, str]:
    return {name: str(folders[name] / "adapter") for name in ADAPTERS}


@pytest.fixture(scope="module")
def references(folders) -> dict[str | None, list[Reference]]:
    """Of every adapter, by its merged weights, the answers to the same conversations."""
    asked = conversations(8)
    made = {
        name: generate_references(folder, asked, MAX_NEW_TOKENS) for name, folder in folders.items()
    }
    answers = {tuple(item.token_ids) for items in made.values() for item in items}
    assert len(answers) > 28, "adapters that do not change the answer prove nothing"
    return made


@pytest.mark.parametrize(
    "engine",
    [
        {},
        {"enable_prefix_caching": False},
        {"max_batch_size": 5, "max_prefill_token_num": 16},
        {"num_gpu_blocks": 40, "preempts": True},
        {"num_gpu_blocks": 40, "max_prefill_token_num": 50, "block_size": 5},
    ],
    ids=["all", "uncached", "chunks", "preempted", "everything-small"],
)
def test_adapters_in_one_batch_answer_as_merged_weights(
    tiny_folder, folders, adapters, references, engine
):
    engine = dict(engine)
    preempts = engine.pop("preempts", False)
    asked = AdapterEngine(tiny_folder, adapters, **engine)
    order = [(index, name) for index in range(8) for name in NAMES]
    responses = asked.answer([(references[name][index].messages, name) for index, name in order])
    for name, folder in folders.items():
        own = [response for response, item in zip(responses, order, strict=True) if item[1] == name]
        assert_parity(folder, references[name], own, EOS)
    assert not preempts or asked.engine.stats.num_preemptions > 0


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_alone_answers_as_merged_weights(
    tiny_folder, folders, adapters, references, name
):
    asked = AdapterEngine(tiny_folder, {name: adapters[name]})
    responses = asked.answer([(item.messages, name) for item in references[name]])
    assert_parity(folders[name], references[name], responses, EOS)


def test_a_prompt_shares_its_blocks_under_the_same_adapter_only(tiny_folder, adapters):
    asked = AdapterEngine(tiny_folder, adapters, block_size=4)
    (messages,) = conversations(1)
    names = [None, "some", "everything", "some", None, "everything", "everything"]
    responses = asked.answer([(messages, name) for name in names])
    shared = (responses[0].input_token_len - 1) // 4 * 4
    assert shared > 0
    assert [r.cached_tokens for r in responses] == [0, 0, 0, shared, shared, shared, shared]
    again = asked.answer([(messages, name) for name in names])
    assert [r.cached_tokens for r in again] == [shared] * 7
    assert [r.token_ids for r in again] == [r.token_ids for r in responses]


def test_one_content_under_two_names_shares_its_blocks(tiny_folder, adapters):
    asked = AdapterEngine(tiny_folder, {"a": adapters["some"], "b": adapters["some"]}, block_size=4)
    (messages,) = conversations(1)
    first, second = asked.answer([(messages, "a"), (messages, "b")])
    assert second.cached_tokens > 0
    assert first.token_ids == second.token_ids


def test_images_are_encoded_once_for_all_adapters(tiny_folder, adapters):
    asked = AdapterEngine(tiny_folder, adapters)
    messages = conversations(2)[1]
    asked.answer([(messages, name) for name in NAMES])
    num_images = len(asked.request(0, messages, None).images)
    assert asked.engine.stats.num_encoded_images == num_images > 0


@pytest.mark.parametrize(
    "names, listed", [(["some", "everything"], "'some', 'everything'"), ([], "none")]
)
def test_an_adapter_that_is_not_known_is_the_requests_error(tiny_folder, adapters, names, listed):
    asked = AdapterEngine(tiny_folder, {name: adapters[name] for name in names})
    (messages,) = conversations(1)
    with pytest.raises(
        InvalidRequestError,
        match=f"adapter_name='other' is not known; the engine's adapters are {listed}",
    ):
        asked.answer([(messages, "other")])
    assert asked.engine.num_unfinished == 0
