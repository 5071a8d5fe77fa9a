"""`pipeline()` as a user meets it: forms of prompts, options, errors, closing."""

import gc
import io
import threading
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig, Response, pipeline
from vlmflow_engine.errors import ConfigError, ModelError

SHORT = GenerationConfig(max_new_tokens=6)
FLOAT32 = PytorchEngineConfig(dtype="float32", device_type="cpu")


def picture(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def pipe(tiny_llava):
    with pipeline(str(tiny_llava), backend_config=FLOAT32) as pipe:
        yield pipe


def test_one_prompt_gives_a_response_and_a_list_gives_a_list_in_order(pipe):
    one = pipe("how many", SHORT)
    assert isinstance(one, Response)
    several = pipe(["red", "how many", "blue"], SHORT)
    assert [r.index for r in several] == [0, 1, 2]
    assert several[1].token_ids == one.token_ids
    assert pipe([], SHORT) == []


def test_all_forms_of_a_prompt_mean_the_same(pipe, tmp_path):
    image = picture(1)
    path = tmp_path / "a.png"
    image.save(path)
    parts = [{"type": "image_url", "image_url": {"url": str(path)}}, {"type": "text", "text": "x"}]
    data = {"type": "image_data", "image_data": {"data": image}}
    prompts = [
        ("x", image),
        (image, "x"),
        ("x", [image]),
        ("x", str(path)),
        ("x", path.read_bytes()),
        [{"role": "user", "content": parts}],
        [{"role": "user", "content": [data, parts[1]]}],
    ]
    answers = pipe(prompts, SHORT)
    assert all(r.finish_reason in ("stop", "length") for r in answers)
    assert len({tuple(r.token_ids) for r in answers}) == 1
    [alone] = {tuple(pipe(prompt, SHORT).token_ids) for prompt in prompts}
    assert list(alone) == answers[0].token_ids


def test_a_response_counts_its_tokens(pipe):
    response = pipe(("what", picture(2)), GenerationConfig(max_new_tokens=5, ignore_eos=True))
    assert response.generate_token_len == len(response.token_ids) == 5
    assert response.finish_reason == "length"
    two = pipe(("what", [picture(2), picture(3)]), SHORT)
    # Another image is 36 rows and the newline behind it.
    assert two.input_token_len == response.input_token_len + 36 + 1


def test_a_stop_token_ends_an_answer_and_is_not_part_of_it(pipe):
    free = pipe("red", GenerationConfig(max_new_tokens=8, ignore_eos=True))
    stop = free.token_ids[3]
    config = GenerationConfig(max_new_tokens=8, ignore_eos=True, stop_token_ids=[stop])
    stopped = pipe("red", config)
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(stop)]
    assert stopped.generate_token_len == len(stopped.token_ids)


def test_each_prompt_may_have_its_own_options(pipe):
    configs = [GenerationConfig(max_new_tokens=n, ignore_eos=True) for n in (1, 5, 3)]
    assert [r.generate_token_len for r in pipe(["a"] * 3, configs)] == [1, 5, 3]


def test_a_wrong_number_of_options_is_refused_at_once(pipe):
    with pytest.raises(ValueError, match="2 gen_configs for 3 prompts"):
        pipe(["a", "b", "c"], [SHORT, SHORT])


def test_a_sampled_answer_is_the_same_alone_and_in_a_batch(pipe):
    config = GenerationConfig(max_new_tokens=12, do_sample=True, random_seed=7, ignore_eos=True)
    alone = pipe("what is this", config).token_ids
    batch = ["filler"] * 20 + ["what is this"] + ["more"] * 20
    assert pipe(batch, config)[20].token_ids == alone
    other = GenerationConfig(max_new_tokens=12, do_sample=True, random_seed=8, ignore_eos=True)
    assert pipe("what is this", other).token_ids != alone


def test_without_a_seed_two_draws_differ(pipe):
    config = GenerationConfig(max_new_tokens=12, do_sample=True, temperature=2.0, ignore_eos=True)
    assert pipe("what", config).token_ids != pipe("what", config).token_ids


BAD = {
    "no such file": ("x", "/nowhere/a.png"),
    "no image": ("x", b"these are no pixels"),
    "http": ("x", "http://127.0.0.1/a.png"),
    "form": 7,
    "role": [{"role": "nobody", "content": "x"}],
    "too long": "word " * 3000,
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_prompt_is_its_own_error_and_harms_nobody(pipe, name):
    good = [r.token_ids for r in pipe(["red", "blue"], SHORT)]
    first, bad, last = pipe(["red", BAD[name], "blue"], SHORT)
    assert bad.finish_reason == "error"
    assert bad.error_code and bad.error_message
    assert bad.text == "" and bad.token_ids == [] and bad.index == 1
    assert [first.token_ids, last.token_ids] == good


def test_error_codes_are_those_of_lmdeploy(pipe):
    codes = {name: pipe(prompt, SHORT).error_code for name, prompt in list(BAD.items())[:3]}
    assert set(codes.values()) == {"preprocess_failed"}
    assert pipe([BAD["form"]], SHORT)[0].error_code == "invalid_request"
    assert pipe(BAD["too long"], SHORT).error_code == "context_length_exceeded"


def test_a_failing_step_costs_those_in_it_and_the_next_call_works(tiny_llava, monkeypatch):
    with Pipeline(str(tiny_llava), backend_config=FLOAT32) as pipe:
        before = pipe(["red", "blue"], SHORT)
        runner = pipe._driver._engine._runner
        execute, calls = type(runner).execute, []

        def fail_once(self, plan):
            calls.append(plan)
            if len(calls) == 2:
                raise RuntimeError("the device is on fire")
            return execute(self, plan)

        monkeypatch.setattr(type(runner), "execute", fail_once)
        failed = pipe(["red", "blue"], SHORT)
        assert {r.error_code for r in failed} == {"internal_error"}
        assert "the device is on fire" in failed[0].error_message
        after = pipe(["red", "blue"], SHORT)
        assert [r.token_ids for r in after] == [r.token_ids for r in before]


def test_an_interrupted_call_leaves_nothing_to_the_next_one(tiny_llava, monkeypatch):
    with Pipeline(str(tiny_llava), backend_config=FLOAT32) as pipe:
        runner = pipe._driver._engine._runner

        def interrupt(self, plan):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(type(runner), "execute", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pipe(["red"] * 5, SHORT)
        assert [r.index for r in pipe(["blue"], SHORT)] == [0]
        assert pipe._driver._engine._scheduler.block_manager.usage == 0


def test_closing_ends_the_threads_and_frees_the_model(tiny_llava):
    threads = threading.active_count()
    pipe = Pipeline(str(tiny_llava), backend_config=FLOAT32)
    pipe("red", SHORT)
    weight = weakref.ref(pipe._driver._engine._runner.model.decoder.embedding)
    pipe.close()
    pipe.close()
    gc.collect()
    assert weight() is None
    assert threading.active_count() == threads
    with pytest.raises(RuntimeError, match="closed"):
        pipe("red")


@pytest.mark.parametrize(
    "config, sentence",
    [
        ({"session_len": 5000}, "session_len=5000 exceeds the 1024 positions"),
        ({"cache_max_entry_count": 1e-9, "session_len": 1000}, "lower session_len"),
        ({"device_type": "cuda"}, "torch sees no CUDA device"),
    ],
    ids=["session", "memory", "cuda"],
)
def test_options_that_cannot_be_met_are_told_in_a_sentence(tiny_llava, config, sentence):
    if config.get("device_type") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ConfigError, match=sentence):
        Pipeline(str(tiny_llava), backend_config=PytorchEngineConfig(**config))


def test_a_model_that_is_no_folder_is_told_in_a_sentence():
    with pytest.raises(ModelError, match="'nowhere': no such folder"):
        pipeline("nowhere")


def test_a_short_session_limits_prompt_and_answer(tiny_llava):
    config = PytorchEngineConfig(dtype="float32", device_type="cpu", session_len=20)
    with Pipeline(str(tiny_llava), backend_config=config) as pipe:
        response = pipe("red", GenerationConfig(max_new_tokens=None, ignore_eos=True))
        assert response.input_token_len + response.generate_token_len == 20
        assert response.finish_reason == "length"
        too_long = pipe("red " * 30)
        assert too_long.error_code == "context_length_exceeded"


def test_images_of_any_format_are_read(pipe):
    image = picture(3, (120, 80))
    answers = []
    for kind in ("PNG", "BMP"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        answers.append(pipe(("x", buffer.getvalue()), SHORT).token_ids)
    assert answers[0] == answers[1] == pipe(("x", image), SHORT).token_ids
