"""`pipeline()` as a user meets it: forms of prompts, options, errors, closing."""

import _thread
import gc
import io
import shutil
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from tests.tiny_llava import save_tiny_llava
from vlmflow_engine import (
    GenerationConfig,
    Pipeline,
    PytorchEngineConfig,
    Response,
    driver,
    pipeline,
)
from vlmflow_engine.errors import ConfigError, InvalidRequestError, ModelError
from vlmflow_engine.inputs.prompts import TokenIds
from vlmflow_engine.inputs.worker_pool import ProcessPreprocessor
from vlmflow_engine.models.decoder import Decoder
from vlmflow_engine.runner.model_runner import ModelRunner

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


def test_a_failed_request_does_not_wait_for_the_garbage_collector(pipe):
    formats = [{"type": "regex_schema", "regex_schema": regex} for regex in ("(", r"[^\s\S]")]
    configs = [SHORT] * len(BAD) + [replace(SHORT, response_format=form) for form in formats]
    prompts = [*BAD.values(), *[("x", picture(1))] * len(formats)]
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        assert {response.finish_reason for response in pipe(prompts, configs)} == {"error"}
        gc.collect()
        kinds = {type(item) for item in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert [kind for kind in kinds if kind.__module__.startswith("vlmflow_engine")] == []


def test_a_request_that_cannot_be_taken_in_harms_nobody(pipe, monkeypatch):
    banned = driver.banned_sequences

    def fail(tokenizer, words):
        if "cursed" in words:
            raise UnicodeError("this library speaks no such tongue")
        return banned(tokenizer, words)

    monkeypatch.setattr(driver, "banned_sequences", fail)
    cursed = replace(SHORT, bad_words=["cursed"])
    before = pipe(["red", "blue"], SHORT)
    first, failed, last = pipe(["red", "how many", "blue"], [SHORT, cursed, SHORT])
    assert (failed.error_code, failed.text) == ("internal_error", "")
    assert "UnicodeError" in failed.error_message
    assert [first.text, last.text] == [response.text for response in before]


def test_a_failing_step_costs_those_in_it_and_the_next_call_works(tiny_llava, monkeypatch):
    with Pipeline(str(tiny_llava), backend_config=FLOAT32) as pipe:
        before = pipe(["red", "blue"], SHORT)
        launch, calls = ModelRunner.launch, []

        def fail_once(self, plan):
            if len(plan.scheduled) == 2 and not calls:
                calls.append(plan)
                raise RuntimeError("the device is on fire")
            return launch(self, plan)

        monkeypatch.setattr(ModelRunner, "launch", fail_once)
        # Long enough for both to be in a step, however late the second is prepared.
        failed = pipe(["red", "blue"], GenerationConfig(max_new_tokens=500, ignore_eos=True))
        assert {r.error_code for r in failed} == {"internal_error"}
        assert "the device is on fire" in failed[0].error_message
        after = pipe(["red", "blue"], SHORT)
        assert [r.token_ids for r in after] == [r.token_ids for r in before]


def test_prompts_are_prepared_while_the_engine_steps(tiny_llava, monkeypatch):
    launch, init = ModelRunner.launch, ProcessPreprocessor.__init__
    preprocessors, prepared = [], []

    def watched_init(self, *args, **kwargs):
        preprocessors.append(self)
        init(self, *args, **kwargs)

    def step_slowly(self, plan):
        if not prepared:
            [preprocessor] = preprocessors
            done, deadline = preprocessor._done, time.monotonic() + 60
            while done.qsize() < 20 - len(plan.scheduled) and time.monotonic() < deadline:
                time.sleep(0.01)
            prepared.append(len(plan.scheduled) + done.qsize())
        return launch(self, plan)

    monkeypatch.setattr(ProcessPreprocessor, "__init__", watched_init)
    monkeypatch.setattr(ModelRunner, "launch", step_slowly)
    with Pipeline(str(tiny_llava), backend_config=FLOAT32) as pipe:
        pipe([("what", picture(number)) for number in range(20)], SHORT)
    assert prepared == [20]


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_a_model_that_cannot_be_loaded_leaves_no_process(tiny_llava, tmp_path):
    shutil.copytree(tiny_llava, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    before = children()
    with pytest.raises(ModelError):
        Pipeline(str(tmp_path), backend_config=FLOAT32)
    assert children() == before


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_answers_are_the_same_however_prompts_are_prepared(pipe, tiny_llava, num_workers):
    config = replace(FLOAT32, num_preprocess_workers=num_workers)
    before = children()
    prompts = [("how many", picture(number % 3)) for number in range(8)] + [BAD["no image"]]
    with Pipeline(str(tiny_llava), backend_config=config) as other:
        assert len(children() - before) == num_workers
        answers = [replace(response, cached_tokens=0) for response in other(prompts, SHORT)]
    assert children() == before
    assert answers == [replace(response, cached_tokens=0) for response in pipe(prompts, SHORT)]


def test_an_interrupted_call_leaves_nothing_to_the_next_one(tiny_llava):
    endless = GenerationConfig(max_new_tokens=None, ignore_eos=True)
    with Pipeline(str(tiny_llava), backend_config=FLOAT32) as pipe:
        timer = threading.Timer(0.3, _thread.interrupt_main)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pipe(["red"] * 50, endless)
        timer.join()
        assert [r.index for r in pipe(["blue"], SHORT)] == [0]
        assert pipe.stats.num_running <= 1


@pytest.fixture
def decoders(monkeypatch):
    """Weak references to all decoders that are made."""
    made = []
    init = Decoder.__init__

    def watched_init(self, *args, **kwargs):
        made.append(weakref.ref(self))
        init(self, *args, **kwargs)

    monkeypatch.setattr(Decoder, "__init__", watched_init)
    return made


def test_closing_ends_the_threads_and_frees_the_model(tiny_llava, decoders):
    threads = threading.active_count()
    pipe = Pipeline(str(tiny_llava), backend_config=FLOAT32)
    pipe("red", SHORT)
    pipe.close()
    pipe.close()
    gc.collect()
    assert [decoder() for decoder in decoders] == [None]
    assert threading.active_count() == threads
    with pytest.raises(RuntimeError, match="closed"):
        pipe("red")


def test_a_pipeline_that_nobody_holds_is_closed(tiny_llava, decoders):
    threads = threading.active_count()
    Pipeline(str(tiny_llava), backend_config=FLOAT32)("red", SHORT)
    gc.collect()
    assert [decoder() for decoder in decoders] == [None]
    assert threading.active_count() == threads


def test_a_stuck_step_is_an_error_and_its_stack_is_in_the_log(tiny_llava, monkeypatch, caplog):
    is_over = threading.Event()
    config = PytorchEngineConfig(dtype="float32", device_type="cpu", step_timeout=0.2)
    with Pipeline(str(tiny_llava), backend_config=config) as pipe:
        monkeypatch.setattr(ModelRunner, "launch", lambda self, plan: is_over.wait())
        responses = pipe(["red", "blue"], SHORT)
        assert {r.error_code for r in responses} == {"engine_unavailable"}
        assert "step_timeout=0.2" in responses[0].error_message
        assert "in step" in caplog.text, "the stack of the engine's thread"
        is_over.set()


@pytest.mark.parametrize(
    "config, sentence",
    [
        ({"cache_max_entry_count": 1e-9, "session_len": 1000}, "lower session_len"),
        ({"device_type": "cuda"}, "torch sees no CUDA device"),
    ],
    ids=["memory", "cuda"],
)
def test_options_that_cannot_be_met_are_told_in_a_sentence(tiny_llava, config, sentence):
    if config.get("device_type") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ConfigError, match=sentence):
        Pipeline(str(tiny_llava), backend_config=PytorchEngineConfig(**config))


def test_a_model_that_is_no_folder_is_told_in_a_sentence():
    with pytest.raises(ModelError, match="'nowhere': no such folder"):
        pipeline("nowhere")


def test_a_message_that_is_not_in_a_list_is_no_batch_of_its_keys(pipe):
    message = {"role": "user", "content": "red"}
    for call in (pipe, pipe.iter_infer, pipe.stream_infer):
        with pytest.raises(InvalidRequestError, match="a list of these, got dict"):
            call(message)


def test_a_prompt_without_an_answer_is_a_line_in_the_log(pipe, caplog):
    missing = ("what", "missing.png")
    responses = pipe(["red", missing], SHORT)
    [chunk] = pipe.stream_infer(missing, gen_config=SHORT)
    lines = [record.getMessage() for record in caplog.records]
    reason = "has no answer: preprocess_failed: cannot read 'missing.png'"
    assert [line.split(":")[0] for line in lines] == [
        "prompt 1 has no answer",
        "prompt 0 has no answer",
    ]
    assert all(reason in line for line in lines)
    assert (responses[0].error_code, responses[1].text, chunk.text) == (None, "", "")


def test_a_turn_has_one_answer(pipe):
    with pytest.raises(ConfigError, match="n must be 1, got 2"):
        pipe.chat("red", gen_config=GenerationConfig(n=2, do_sample=True))
    with pytest.raises(ConfigError, match="gen_config must be of type GenerationConfig"):
        pipe.chat("red", gen_config={"n": 1})


def test_a_turn_of_unsaid_preprocessing_is_prompted_as_any(pipe):
    turns = [pipe.chat("red", do_preprocess=wish, gen_config=SHORT) for wish in (None, True)]
    assert turns[0].response.token_ids == turns[1].response.token_ids
    plain = pipe.chat("red", do_preprocess=False, gen_config=SHORT)
    assert plain.response.input_token_len < turns[0].response.input_token_len


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


def test_a_token_that_the_model_does_not_know_costs_its_own_prompt_only(tmp_path):
    folder = save_tiny_llava(tmp_path, text_config={"vocab_size": 500})
    with Pipeline(str(folder), FLOAT32) as pipe:
        known, unknown = pipe.infer([TokenIds([1, 499]), TokenIds([1, 500])])
    assert known.error_message is None
    assert unknown.error_code == "invalid_request"
    assert "token 500, but the model's vocabulary ends at 499" in unknown.error_message
