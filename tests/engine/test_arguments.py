"""What a caller can get wrong before a prompt is prepared: each is one sentence, at once."""

import itertools

import pytest

from vlmflow_engine import (
    ChatTemplateConfig,
    GenerationConfig,
    PytorchEngineConfig,
    Session,
    Tokenizer,
    pipeline,
)
from vlmflow_engine.arguments import (
    check_session,
    each_config,
    each_session,
    many_prompts,
    prompt_options,
    with_configs,
)
from vlmflow_engine.errors import ConfigError, InvalidRequestError, ModelError

MESSAGE = {"role": "user", "content": "hi"}
CONFIG = GenerationConfig()


@pytest.mark.parametrize("prompts", [None, 5, b"hi", MESSAGE], ids=repr)
def test_what_is_no_prompt_is_not_taken_apart_into_some(prompts):
    with pytest.raises(InvalidRequestError, match=f"a list of these, got {type(prompts).__name__}"):
        many_prompts(prompts)


@pytest.mark.parametrize(
    ("prompts", "count"),
    [("hi", 1), (("hi", "a.png"), 1), ([MESSAGE, MESSAGE], 1), (["a", "b"], 2), ([], 0)],
)
def test_one_prompt_and_several_are_both_iterables(prompts, count):
    assert len(list(many_prompts(prompts))) == count


@pytest.mark.parametrize(
    "config",
    [{"top_p": 0.5}, "top_p=0.5", 5, [{"top_p": 0.5}], [None], PytorchEngineConfig()],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_generation_config_is_named(config):
    with pytest.raises(ConfigError, match="gen_config must be a GenerationConfig, or a list"):
        each_config(["hi"], config)


def test_configs_may_come_from_any_iterable_and_are_counted():
    assert each_config(["a", "b"], (c for c in [CONFIG, CONFIG])) == [CONFIG, CONFIG]
    with pytest.raises(ValueError, match="1 gen_configs for 2 prompts"):
        each_config(["a", "b"], (c for c in [CONFIG]))


@pytest.mark.parametrize(("count", "than"), [(1, "more"), (3, "fewer")])
def test_configs_of_a_stream_of_prompts_are_counted_when_it_ends(count, than):
    pairs = with_configs(iter(["a", "b"]), [CONFIG] * count)
    with pytest.raises(ValueError, match=f"{count} gen_configs, and {than} prompts"):
        list(pairs)


def test_one_config_serves_any_number_of_prompts():
    pairs = with_configs((str(n) for n in itertools.count()), each_config(None, CONFIG))
    assert [prompt for prompt, _ in itertools.islice(pairs, 3)] == ["0", "1", "2"]


@pytest.mark.parametrize("sessions", ["s", ["s"], CONFIG], ids=lambda value: type(value).__name__)
def test_what_is_no_session_is_named(sessions):
    with pytest.raises(TypeError, match="must be .*Session"):
        each_session(["hi"], sessions)
    with pytest.raises(TypeError, match="must be a Session"):
        check_session(sessions)


def test_each_prompt_has_a_session_or_none_has():
    assert each_session(["a"], None) == each_session(["a"], []) == ()
    one = Session()
    assert list(each_session(["a"], one)) == [one]
    with pytest.raises(ValueError, match="1 sessions for 2 prompts"):
        each_session(["a", "b"], one)
    with pytest.raises(ValueError, match="1 sessions for a stream of prompts"):
        each_session(iter(["a"]), one)


def test_an_option_of_sampling_in_the_wrong_place_is_told_where_it_belongs():
    with pytest.raises(TypeError, match=r"'top_p'; it belongs into gen_config=GenerationConfig"):
        prompt_options(True, {"top_p": 0.5})
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'; known are add_"):
        prompt_options(True, {"colour": "red"})


def test_no_wish_about_preprocessing_is_the_default():
    assert prompt_options(None, {}) == prompt_options(True, {})
    assert not prompt_options(False, {}).do_preprocess


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"model_path": None}, "model_path must be of type str or PathLike, got NoneType"),
        ({"backend_config": "turbomind"}, "backend_config must be of type PytorchEngineConfig"),
        ({"backend_config": {"tp": 1}}, "backend_config must be of type PytorchEngineConfig"),
        ({"chat_template_config": "vicuna"}, "must be of type ChatTemplateConfig or None, got str"),
        ({"vision_config": 8}, "vision_config must be of type VisionConfig or None, got int 8"),
        ({"log_level": "LOUD"}, "log_level must be one of DEBUG.*got 'LOUD'"),
        ({"log_level": 1.5}, "log_level must be one of DEBUG.*got 1.5"),
    ],
)
def test_an_argument_of_a_wrong_type_is_refused_before_a_model_is_looked_for(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        pipeline(**{"model_path": "nowhere"} | arguments)


def test_a_level_of_the_log_may_be_written_small():
    with pytest.raises(ModelError):
        pipeline("nowhere", log_level="warning")


@pytest.mark.parametrize(
    "option",
    [
        {"step_timeout": "10"},
        {"step_timeout": None},
        {"download_dir": 5},
        {"revision": 5},
        {"allowed_local_media_path": 5},
    ],
    ids=str,
)
def test_options_of_a_wrong_type_are_refused_when_the_config_is_made(option):
    (name,) = option
    with pytest.raises(ConfigError, match=f"{name} must be of type"):
        PytorchEngineConfig(**option)


def test_a_misspelled_chat_template_is_no_bare_prompt(tiny_llava):
    with pytest.raises(ConfigError, match="no chat template is called 'vicunna'.*vicuna"):
        pipeline(tiny_llava, chat_template_config=ChatTemplateConfig("vicunna"))


def test_a_tokenizer_names_what_it_cannot_take(tiny_llava):
    with pytest.raises(ConfigError, match="model_path must be of type str"):
        Tokenizer(None)
    with pytest.raises(ModelError, match=r"'owner/name' is not a folder.*hub"):
        Tokenizer("owner/name")
    tokenizer = Tokenizer(tiny_llava)
    with pytest.raises(ConfigError, match="text must be of type str, got NoneType"):
        tokenizer.encode(None)
    for ids in ([-1], ["a"]):
        with pytest.raises(ConfigError, match="a token id must be a whole number of at least 0"):
            tokenizer.decode(ids)
