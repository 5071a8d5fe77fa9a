"""`infer`, the call, `get_ppl` and `with`: what goes in, what comes out, and who is to blame."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.engine.inputs.pictures import noise
from vlmflow_engine import (
    GenerationConfig,
    Pipeline,
    PytorchEngineConfig,
    Response,
    Tokenizer,
    pipeline,
)
from vlmflow_engine.errors import InvalidRequestError
from vlmflow_engine.vl import encode_image_base64

SHORT = GenerationConfig(max_new_tokens=6, ignore_eos=True)
IMAGE = noise(96, 96, seed=1)
DATA_URL = f"data:image/png;base64,{encode_image_base64(IMAGE)}"
TEXT_MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "how many"},
]
IMAGE_MESSAGES = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "how many"},
            {"type": "image_url", "image_url": {"url": DATA_URL}},
        ],
    }
]
SINGLE: dict[str, Any] = {
    "a text": "how many",
    "an empty text": "",
    "a text and an image": ("how many", IMAGE),
    "a text and a list of images": ("how many", [IMAGE, IMAGE]),
    "an image and a text": (IMAGE, "how many"),
    "a text and a data URL": ("how many", DATA_URL),
    "messages of texts": TEXT_MESSAGES,
    "messages with an image": IMAGE_MESSAGES,
}


def is_answer(response: Response) -> bool:
    return response.finish_reason in ("stop", "length") and response.error_code is None


@pytest.mark.parametrize("form", SINGLE)
def test_one_prompt_of_any_form_gives_one_response(form: str, pipe: Pipeline) -> None:
    response = pipe.infer(SINGLE[form], gen_config=SHORT)
    assert isinstance(response, Response) and is_answer(response)
    assert response.index == 0
    assert response.generate_token_len == len(response.token_ids) == 6
    assert response.input_token_len > 0


BATCHES: dict[str, Callable[[], Any]] = {
    "texts": lambda: ["red", "how many", "blue"],
    "one text": lambda: ["red"],
    "pairs": lambda: [("red", IMAGE), ("blue", IMAGE)],
    "pairs either way round": lambda: [("red", IMAGE), (IMAGE, "blue")],
    "message lists": lambda: [TEXT_MESSAGES, IMAGE_MESSAGES],
    "one message list": lambda: [TEXT_MESSAGES],
    "all forms": lambda: list(SINGLE.values()),
    "a tuple of three": lambda: ("red", "how many", "blue"),
    "a generator": lambda: (("what is it", IMAGE) for _ in range(3)),
    "nothing": lambda: [],
}


@pytest.mark.parametrize("name", BATCHES)
def test_several_prompts_give_a_list_in_their_order(name: str, pipe: Pipeline) -> None:
    responses = pipe(BATCHES[name](), SHORT)
    assert isinstance(responses, list)
    expected = [pipe(prompt, SHORT).token_ids for prompt in BATCHES[name]()]
    assert [response.token_ids for response in responses] == expected
    assert [response.index for response in responses] == list(range(len(expected)))


def test_more_prompts_than_a_batch_holds_come_back_in_order(
    tiny_llava: Path, pipe: Pipeline
) -> None:
    config = PytorchEngineConfig(dtype="float32", device_type="cpu", max_batch_size=2)
    prompts = [f"star {number}" for number in range(9)]
    lengths = [GenerationConfig(max_new_tokens=9 - number, ignore_eos=True) for number in range(9)]
    with pipeline(str(tiny_llava), backend_config=config) as small:
        assert small.info.max_batch_size == 2
        responses = small(prompts, lengths)
    assert [r.text for r in responses] == [r.text for r in pipe(prompts, lengths)]


def test_without_a_config_an_answer_is_greedy_and_has_512_tokens_at_most(pipe: Pipeline) -> None:
    first, second = pipe("red"), pipe.infer("red", gen_config=GenerationConfig())
    assert first.token_ids == second.token_ids
    assert first.generate_token_len <= 512
    assert (first.finish_reason == "length") is (first.generate_token_len == 512)


def test_a_list_of_configs_has_one_for_each_prompt(pipe: Pipeline) -> None:
    configs = [
        GenerationConfig(max_new_tokens=3, ignore_eos=True),
        GenerationConfig(max_new_tokens=5, ignore_eos=True, do_sample=True, random_seed=3),
    ]
    greedy, sampled = pipe(["red", "red"], gen_config=configs)
    assert greedy.token_ids == pipe("red", configs[0]).token_ids
    assert sampled.token_ids == pipe("red", configs[1]).token_ids
    assert [greedy.generate_token_len, sampled.generate_token_len] == [3, 5]


def test_a_single_prompt_may_have_its_config_in_a_list(pipe: Pipeline) -> None:
    assert pipe("red", [SHORT]).token_ids == pipe("red", SHORT).token_ids


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_configs_is_told_before_anything_runs(count: int, pipe: Pipeline) -> None:
    before = pipe.stats.num_prompt_tokens
    with pytest.raises(ValueError, match=f"{count} gen_configs for 2 prompts"):
        pipe.infer(["red", "blue"], gen_config=[SHORT] * count)
    assert pipe.stats.num_prompt_tokens == before


def test_a_config_is_the_callers_own_and_stays_as_it_is(pipe: Pipeline) -> None:
    config = GenerationConfig(
        max_new_tokens=4, do_sample=True, stop_words=["</s>", "zzz"], bad_words=["star"]
    )
    before = repr(config)
    pipe(["red", "blue"], config)
    assert repr(config) == before


def test_a_progress_bar_is_shown_on_demand_and_changes_nothing(
    pipe: Pipeline, capfd: pytest.CaptureFixture[str]
) -> None:
    silent = pipe(["red", "blue", "green"], SHORT)
    assert capfd.readouterr().err == ""
    shown = pipe.infer(["red", "blue", "green"], SHORT, use_tqdm=True)
    assert "3/3" in capfd.readouterr().err
    assert [r.token_ids for r in shown] == [r.token_ids for r in silent]


@pytest.mark.parametrize("max_new_tokens", [0, -1])
def test_no_new_tokens_at_all_is_an_error_record(max_new_tokens: int, pipe: Pipeline) -> None:
    response = pipe("red", GenerationConfig(max_new_tokens=max_new_tokens))
    assert (response.text, response.token_ids, response.generate_token_len) == ("", [], 0)
    assert (response.finish_reason, response.error_code) == ("error", "invalid_request")
    assert f"max_new_tokens must be at least 1, got {max_new_tokens}" in response.error_message


def _message(part: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]


def _cut_png() -> bytes:
    file = io.BytesIO()
    IMAGE.save(file, "PNG")
    return file.getvalue()[:2000]


BAD: dict[str, tuple[Any, str]] = {
    "a file that is not there": (("x", "/nowhere/a.png"), "preprocess_failed"),
    "bytes that are no image": (("x", b"no pixels"), "preprocess_failed"),
    "a truncated image": (("x", _cut_png()), "preprocess_failed"),
    "a URL of this machine": (("x", "http://127.0.0.1/a.png"), "preprocess_failed"),
    "a data URL without an image": (
        _message({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}),
        "preprocess_failed",
    ),
    "more places than images": (("<IMAGE_TOKEN> and <IMAGE_TOKEN>", IMAGE), "preprocess_failed"),
    "a part that names no image": (_message({"type": "image_url"}), "invalid_request"),
    "a part of an unknown type": (_message({"type": "smell", "smell": "x"}), "invalid_request"),
    "a role that nobody has": ([{"role": "nobody", "content": "x"}], "invalid_request"),
    "a number": (7, "invalid_request"),
    "a pair without a text": ((IMAGE, IMAGE), "invalid_request"),
    "a text that is too long": ("word " * 3000, "context_length_exceeded"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_prompt_is_an_error_record_and_its_siblings_are_kept(
    name: str, pipe: Pipeline
) -> None:
    prompt, code = BAD[name]
    first, bad, last = pipe(["red", prompt, ("blue", IMAGE)], SHORT)
    assert [first.text, last.text] == [pipe(p, SHORT).text for p in ("red", ("blue", IMAGE))]
    assert (bad.text, bad.token_ids, bad.generate_token_len) == ("", [], 0)
    assert (bad.index, bad.finish_reason, bad.error_code) == (1, "error", code)
    assert bad.error_message
    assert first.error_code is last.error_code is None


def test_a_prompt_that_failed_may_be_asked_again_and_fail_again(pipe: Pipeline) -> None:
    codes = {pipe(("x", "/nowhere/a.png"), SHORT).error_code for _ in range(3)}
    assert codes == {"preprocess_failed"}
    assert is_answer(pipe("red", SHORT))


@pytest.mark.parametrize(
    "prompts",
    [5, None, b"red", {"role": "user", "content": "red"}, IMAGE],
    ids=["number", "none", "bytes", "one message", "image"],
)
@pytest.mark.parametrize("name", ["infer", "stream_infer"])
def test_what_is_no_prompt_is_told_to_the_caller_at_once(
    name: str, prompts: Any, pipe: Pipeline
) -> None:
    with pytest.raises(InvalidRequestError, match="prompts is a str, .* or a list of these"):
        getattr(pipe, name)(prompts)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("log_level", "INFO"),
        ("max_log_len", 10),
        ("media_io_kwargs", {"image": {}}),
        ("mm_processor_kwargs", {"image": {"max_pixels": 5}}),
    ],
)
def test_an_option_without_a_meaning_here_is_a_line_in_the_log(
    option: str, value: Any, pipe: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    assert pipe("red", SHORT, **{option: value}).text == pipe("red", SHORT).text
    assert f"{option} has no effect" in caplog.text


def test_an_option_that_nobody_knows_is_a_type_error(pipe: Pipeline) -> None:
    with pytest.raises(TypeError, match="'colour'.*chat_template_kwargs"):
        pipe("red", SHORT, colour="red")


def test_an_adapter_that_is_not_there_is_an_error_record(pipe: Pipeline) -> None:
    response = pipe.infer("red", SHORT, adapter_name="nobody")
    assert (response.finish_reason, response.error_code) == ("error", "invalid_request")
    assert "'nobody'" in response.error_message


def test_a_text_engine_refuses_an_image_and_answers_texts(tiny_llava: Path) -> None:
    config = PytorchEngineConfig(dtype="float32", device_type="cpu", language_model_only=True)
    with pipeline(str(tiny_llava), backend_config=config) as texts:
        answer, refused = texts(["red", ("red", IMAGE)], SHORT)
    assert is_answer(answer)
    assert refused.error_code == "invalid_request" and "image" in refused.error_message


def test_perplexity_is_the_mean_cross_entropy_of_all_tokens_but_the_first(
    pipe: Pipeline, tokenizer: Tokenizer
) -> None:
    text = "how many stars are there"
    ids = tokenizer.encode(text)
    config = GenerationConfig(max_new_tokens=1, output_logits="all", return_ppl=True)
    response = pipe.infer(text, config, do_preprocess=False)
    assert response.input_token_len == len(ids)
    expected = torch.nn.functional.cross_entropy(
        response.logits[: len(ids) - 1], torch.tensor(ids[1:])
    ).item()
    assert pipe.get_ppl(ids) == pytest.approx([expected], abs=1e-5)
    assert response.ppl == pytest.approx(expected, abs=1e-5)


def test_perplexity_of_a_batch_is_a_list_in_its_order(pipe: Pipeline) -> None:
    batch = [[5, 9, 33, 70], [7, 8], [70, 33, 9, 5, 12]]
    values = pipe.get_ppl(batch)
    assert all(isinstance(value, float) and value > 0 for value in values)
    assert values == pytest.approx([pipe.get_ppl(ids)[0] for ids in batch], abs=1e-5)
    assert len(set(values)) == 3


@pytest.mark.parametrize("ids", [[5], [[5, 6], [7]], [[]]])
def test_perplexity_needs_two_tokens(ids: Any, pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match="at least two token ids"):
        pipe.get_ppl(ids)


def test_leaving_the_block_closes_and_closing_twice_is_harmless(tiny_llava: Path) -> None:
    config = PytorchEngineConfig(device_type="cpu")
    with pipeline(str(tiny_llava), backend_config=config) as pipe:
        assert isinstance(pipe, Pipeline) and is_answer(pipe("red", SHORT))
    pipe.close()
    for ask in (pipe, pipe.infer, pipe.stream_infer, pipe.chat):
        with pytest.raises(RuntimeError, match="closed"):
            ask("red")
    with pytest.raises(RuntimeError, match="closed"):
        pipe.get_ppl([5, 6])


def test_a_response_says_what_it_is_when_it_is_printed(pipe: Pipeline) -> None:
    response = pipe(("how many", IMAGE), SHORT)
    printed = str(response)
    for field in ("finish_reason=length", "generate_token_len=6", "index=0"):
        assert field in printed
    assert f"input_token_len={response.input_token_len}" in printed
    assert printed.endswith(f"text:\n{response.text}")
    failed = str(pipe(("x", "/nowhere/a.png"), SHORT))
    assert "error_code=preprocess_failed" in failed and "/nowhere/a.png" in failed


def test_images_are_read_when_asked_and_stay_the_callers_own(pipe: Pipeline) -> None:
    image = Image.new("L", (40, 30), 7)
    pipe(("x", image), SHORT)
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("L", (40, 30), 7)
