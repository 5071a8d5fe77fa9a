"""What a caller hands to a `Pipeline`: looked at before anything is done with it."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import fields
from typing import Any

from vlmflow_engine.checks import shown
from vlmflow_engine.errors import ConfigError, InvalidRequestError
from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.inputs.prompts import PromptOptions, is_single_prompt
from vlmflow_engine.session import Session

GenConfigs = GenerationConfig | Iterable[GenerationConfig] | None

_log = logging.getLogger(__name__)

# Of LMDeploy's options of a call: without a meaning here.
_IGNORED = ("log_level", "max_log_len", "media_io_kwargs", "mm_processor_kwargs")
_OPTIONS = frozenset(item.name for item in fields(PromptOptions))


def many_prompts(prompts: Any) -> Iterable[Any]:
    """Return prompts as an iterable, a single one too. Raises InvalidRequestError for neither."""
    if is_single_prompt(prompts):
        return [prompts]
    # A message, a text in bytes: they can be iterated over, but what comes is no prompt.
    if isinstance(prompts, Mapping | bytes | bytearray) or not isinstance(prompts, Iterable):
        raise InvalidRequestError(
            "prompts is a str, (text, image), (text, [images]), a list of messages "
            f"{{'role': ..., 'content': ...}}, or a list of these, got {shown(prompts)}"
        )
    return prompts


def each_config(prompts: Any, gen_config: GenConfigs) -> Iterable[GenerationConfig]:
    """Return a config for each prompt: a list if the caller has one each, else without end.

    Raises ConfigError, and ValueError if the lists differ in length.
    """
    if gen_config is None or isinstance(gen_config, GenerationConfig):
        config = gen_config or GenerationConfig()
        config.check()
        return itertools.repeat(config)
    is_list = isinstance(gen_config, Iterable) and not isinstance(gen_config, Mapping | str | bytes)
    configs: list[Any] = list(gen_config) if is_list else [gen_config]
    for item in configs:
        if not isinstance(item, GenerationConfig):
            raise ConfigError(
                "gen_config must be a GenerationConfig, or a list with one for each prompt, got "
                f"{shown(item)}"
            )
        item.check()
    if isinstance(prompts, Sized) and len(configs) != len(prompts):
        raise ValueError(
            f"{len(configs)} gen_configs for {len(prompts)} prompts; give one, or one each"
        )
    return configs


def with_configs(
    prompts: Iterable[Any], configs: Iterable[GenerationConfig]
) -> Iterator[tuple[Any, GenerationConfig]]:
    """Pair prompts with configs. Raises ValueError when one of two lists ends before the other."""
    if not isinstance(configs, list):
        yield from zip(prompts, configs, strict=False)
        return
    missing: Any = object()
    for prompt, config in itertools.zip_longest(prompts, configs, fillvalue=missing):
        if prompt is missing or config is missing:
            than = "more" if config is missing else "fewer"
            raise ValueError(
                f"{len(configs)} gen_configs, and {than} prompts; give one, or one each"
            )
        yield prompt, config


def each_session(prompts: Any, sessions: Session | Sequence[Session] | None) -> Sequence[Session]:
    """Return a session for each prompt; none at all if the caller has none.

    Raises TypeError, and ValueError if the lists differ in length.
    """
    if sessions is None:
        return ()
    if isinstance(sessions, Session):
        sessions = [sessions]
    if not isinstance(sessions, list | tuple):
        raise TypeError(f"sessions must be Sessions, got {shown(sessions)}")
    for session in sessions:
        check_session(session)
    if not sessions:
        return ()
    if not isinstance(prompts, Sized) or len(sessions) != len(prompts):
        count = len(prompts) if isinstance(prompts, Sized) else "a stream of"
        raise ValueError(f"{len(sessions)} sessions for {count} prompts; give one each")
    return sessions


def check_session(session: object) -> None:
    """Raise TypeError if it is none."""
    if not isinstance(session, Session):
        raise TypeError(f"a session must be a Session, as chat() returns it, got {shown(session)}")


def prompt_options(do_preprocess: bool | None, options: dict[str, Any]) -> PromptOptions:
    """Put together how prompts are made into text. Raises InvalidRequestError, TypeError."""
    known = {}
    for name, value in options.items():
        if name in _IGNORED:
            if value is not None:
                _log.warning("%s has no effect", name)
        elif name in _OPTIONS:
            known[name] = value
        else:
            hint = f"; known are {', '.join(sorted(_OPTIONS))}"
            if name in {item.name for item in fields(GenerationConfig)}:
                hint = f"; it belongs into gen_config=GenerationConfig({name}=...)"
            raise TypeError(f"unexpected keyword argument {name!r}{hint}")
    # None is what LMDeploy's callers write for the default.
    return PromptOptions(do_preprocess=True if do_preprocess is None else do_preprocess, **known)
