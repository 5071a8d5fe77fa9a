"""`Pipeline`: prompts answered in this process, in batches, as a stream, or turn by turn."""

import itertools
import logging
import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from types import NoneType
from typing import Any, Self

from vlmflow_engine.answers import Answer, Delta, in_order
from vlmflow_engine.arguments import (
    check_session,
    each_config,
    each_session,
    many_prompts,
    prompt_options,
    with_configs,
)
from vlmflow_engine.checks import check_type
from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.driver import DriverOptions, RequestDriver
from vlmflow_engine.engine import EngineInfo
from vlmflow_engine.errors import CancelledError, ConfigError, RequestConflictError
from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.inputs.prompts import TokenIds, history_messages, is_single_prompt
from vlmflow_engine.loop import Call, EngineLoop
from vlmflow_engine.request import Response
from vlmflow_engine.session import Session
from vlmflow_engine.stats import EngineStats

_log = logging.getLogger(__name__)


class Pipeline:
    """A loaded model, as `pipeline` makes it. Threads may share it.

    Use it in a `with` block, or `close` it; with the last reference to it the model goes too. What
    goes wrong with one prompt is told in its Response and is a line in the log.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        backend_config: PytorchEngineConfig | None = None,
        **options: Any,
    ) -> None:
        """Load a checkpoint, as `pipeline` does, which checks what it is given.

        model_path      folder of a checkpoint, or owner/name on the hub
        backend_config  None: a PytorchEngineConfig as it comes
        options         chat_template and allowed_media_domains

        Raises ModelError or ConfigError.
        """
        config = backend_config or PytorchEngineConfig()
        chosen = DriverOptions(str(model_path), config, **options)
        loop = EngineLoop(lambda: RequestDriver(chosen), step_timeout=config.step_timeout)
        self._loop = loop
        # Also when nobody closes it: a thread and a model must not outlive their pipeline.
        self._finalizer = weakref.finalize(self, loop.close)

    def __call__(
        self,
        prompts: Any,
        gen_config: GenerationConfig | Iterable[GenerationConfig] | None = None,
        **options: Any,
    ) -> Response | list[Response]:
        """Answer one prompt or several: another spelling of `infer`."""
        return self.infer(prompts, gen_config, **options)

    def infer(
        self,
        prompts: Any,
        gen_config: GenerationConfig | Iterable[GenerationConfig] | None = None,
        do_preprocess: bool | None = True,
        adapter_name: str | None = None,
        use_tqdm: bool = False,
        **options: Any,
    ) -> Response | list[Response]:
        """Answer one prompt (a Response) or several (a list, in their order).

            one = pipe(("What is it?", "a.jpg"))
            two = pipe([("What is it?", "a.jpg"), "And who are you?"])

        prompts        a str, (text, image), (text, [images]), either the other way round, or a list
                       of OpenAI-style messages; or a list or another iterable of any of these. An
                       image is a path, an http(s), file: or data: URL, bytes or a PIL image
        gen_config     one for all, or a list with one for each prompt; with n > 1 the answers to a
                       prompt follow one another, and a single prompt gives a list too
        do_preprocess  False: the text is the whole prompt, no chat template is put around it
        adapter_name   one of the engine config's adapters; None: the model as it is
        use_tqdm       show a progress bar
        options        for the chat template: tools, reasoning_effort, enable_thinking,
                       chat_template_kwargs, add_generation_prompt

        A prompt that fails is a Response with finish_reason "error", error_code and error_message;
        the others are not affected.

        Raises ValueError if the lists differ in length, ConfigError if a config's value is not
        allowed, InvalidRequestError if `prompts` or an option has no form that is known, TypeError
        for an argument that is not listed, RuntimeError if the pipeline is closed.
        """
        is_single = is_single_prompt(prompts)
        prompts = list(many_prompts(prompts))
        responses = self.iter_infer(prompts, gen_config, do_preprocess, adapter_name, **options)
        if use_tqdm:
            from tqdm.auto import tqdm

            responses = tqdm(responses, total=len(prompts), unit="answer")
        answers = list(responses)
        return answers[0] if is_single and len(answers) == 1 else answers

    def iter_infer(
        self,
        prompts: Iterable[Any],
        gen_config: GenerationConfig | Iterable[GenerationConfig] | None = None,
        do_preprocess: bool | None = True,
        adapter_name: str | None = None,
        *,
        is_ordered: bool = True,
        **options: Any,
    ) -> Iterator[Response]:
        """Answer any iterable of prompts, taking answers while later prompts are still to come.

        prompts     consumed only so far ahead that the engine stays busy: twice max_batch_size
        is_ordered  True: in the order of the prompts; False: as they are finished, `index` being
                    the prompt's position

        The rest as in `infer`, which raises the same; that a list of configs does not go with a
        stream of prompts is found at its end. Breaking off takes back what is in flight.
        """
        call = self._new_call()
        prompts = many_prompts(prompts)
        configs = each_config(prompts, gen_config)
        shared = {
            "options": prompt_options(do_preprocess, options),
            "adapter_name": adapter_name,
        }
        events = self._events(call, prompts, configs, shared)
        answers = (event for event in events if isinstance(event, Answer))
        return (a.response for a in (in_order(answers) if is_ordered else answers))

    def stream_infer(
        self,
        prompts: Any,
        sessions: Session | Sequence[Session] | None = None,
        gen_config: GenerationConfig | Iterable[GenerationConfig] | None = None,
        do_preprocess: bool | None = True,
        adapter_name: str | None = None,
        stream_response: bool = True,
        **options: Any,
    ) -> Iterator[Response]:
        """Answer one prompt or several, and yield each answer piece by piece, all interleaved.

            for chunk in pipe.stream_infer(("What is it?", "a.jpg")):
                print(chunk.text, end="", flush=True)

        sessions         one for each prompt, whose `abort` ends its answer; None: there are none
        stream_response  False: one chunk an answer

        Of a chunk, `index` is the prompt's position and `choice` which of the n answers; `text`,
        `token_ids` and `logprobs` are what is new. An answer's last chunk has a finish_reason,
        "error" if it failed. The rest as in `infer`, which raises the same.
        """
        call = self._new_call()
        prompts = many_prompts(prompts)
        configs = each_config(prompts, gen_config)
        shared = {
            "options": prompt_options(do_preprocess, options),
            "adapter_name": adapter_name,
            "is_streamed": stream_response,
        }
        events = self._events(call, prompts, configs, shared, each_session(prompts, sessions))
        return (event.response for event in events)

    def chat(
        self,
        prompt: Any,
        session: Session | None = None,
        gen_config: GenerationConfig | None = None,
        stream_response: bool = False,
        do_preprocess: bool | None = True,
        adapter_name: str | None = None,
        **options: Any,
    ) -> Session | Iterator[Response]:
        """Answer the next turn of a conversation, with all turns before it.

        prompt           of any form that `infer` takes for one
        session          None: a new one
        gen_config       kept by the session for the turns to come; n is 1
        stream_response  True: an iterator of chunks is returned, after whose last one the session
                         is up to date

        Returns the session, its `response` set and the turn in its `history`. A turn that fails is
        not in the history; its response says why.

        Raises RequestConflictError while the session's last turn is still being answered, TypeError
        for what is no session, ConfigError and InvalidRequestError as `infer` does.
        """
        session = session if session is not None else self.session()
        check_session(session)
        check_type("gen_config", gen_config, GenerationConfig, NoneType)
        if gen_config is not None and gen_config.n != 1:
            raise ConfigError(f"a turn has one answer, so n must be 1, got {gen_config.n!r}")
        if session.cancel is not None:
            raise RequestConflictError(
                f"session {session.session_id} is still answering; take its last chunk, or abort it"
            )
        session.update(prompt, gen_config=gen_config)
        session.response = None
        chunks = self.stream_infer(
            [prompt if do_preprocess is False else history_messages(session.history, prompt)],
            [session],
            session.gen_config,
            do_preprocess,
            adapter_name,
            stream_response,
            **options,
        )
        session.generator = turn = _turn(session, prompt, chunks)
        if stream_response:
            return turn
        for _ in turn:
            pass
        return session

    def session(self) -> Session:
        """Return a new conversation for `chat`."""
        return Session(weakref.WeakMethod(self.chat))

    def get_ppl(self, input_ids: list[int] | list[list[int]]) -> list[float]:
        """Return the mean cross-entropy (natural logarithm) of each list of token ids.

        input_ids  one list or several, as Tokenizer.encode gives them; of each the first id is only
                   what the others follow. Texts alone: images have no ids

        LMDeploy's name; the perplexity itself is e to its power. Raises ValueError for a list of
        less than two ids, RequestError for one that is too long or holds an unknown id.
        """
        batch: list[Any] = list(input_ids) if isinstance(input_ids, Iterable) else [input_ids]
        if batch and isinstance(batch[0], int):
            batch = [batch]
        for ids in batch:
            is_ids = isinstance(ids, list | tuple) and all(type(i) is int for i in ids)
            if not is_ids or len(ids) < 2:
                raise ValueError(f"get_ppl takes lists of at least two token ids, got {ids!r}")
        config = GenerationConfig(max_new_tokens=1, return_ppl=True, ignore_eos=True)
        values = []
        call = self._new_call()
        prompts = (TokenIds(tuple(ids)) for ids in batch)
        events = self._events(call, prompts, itertools.repeat(config), {})
        for answer in in_order(event for event in events if isinstance(event, Answer)):
            if answer.error is not None:
                raise answer.error
            assert answer.response.ppl is not None
            values.append(answer.response.ppl)
        return values

    @property
    def info(self) -> EngineInfo:
        """What was resolved at start-up: device, dtype, sizes. Readable when it is closed too."""
        return self._loop.info

    @property
    def stats(self) -> EngineStats:
        """What the engine has counted so far. Readable when it is closed too."""
        return self._loop.stats

    def close(self) -> None:
        """End the engine's thread and let go of the model. May be called twice."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_call(self) -> Call:
        if not self._finalizer.alive:
            raise RuntimeError("this Pipeline is closed")
        return Call(self._loop)

    def _events(
        self,
        call: Call,
        prompts: Iterable[Any],
        configs: Iterable[GenerationConfig],
        shared: dict[str, Any],
        sessions: Sequence[Session] = (),
    ) -> Iterator[Answer | Delta]:
        """Submit prompts as far ahead as is useful, and yield what comes of them."""
        # Enough for the next batch to be prepared, not so many that their images fill memory.
        look_ahead = 2 * self.info.max_batch_size
        indices: dict[int, int] = {}  # by ticket
        left = enumerate(with_configs(prompts, configs))
        is_exhausted = False
        try:
            while not is_exhausted or call.num_in_flight:
                event = None
                if is_exhausted or call.num_in_flight >= look_ahead:
                    event = call.next()
                elif (item := next(left, None)) is None:
                    is_exhausted = True
                else:
                    index, (prompt, config) = item
                    ticket = call.submit(prompt, config, **shared)
                    indices[ticket] = index
                    if sessions:
                        sessions[index].cancel = partial(call.cancel, [ticket])
                    event = call.poll()
                if event is not None:
                    index = event.response.index = indices[event.ticket]
                    if isinstance(event, Answer):
                        _log_failure(index, event)
                    if isinstance(event, Answer) and event.is_last:
                        del indices[event.ticket]
                        if sessions:
                            sessions[index].cancel = None
                    yield event
        finally:
            call.cancel()
            for index in indices.values() if sessions else ():
                sessions[index].cancel = None


def _turn(session: Session, prompt: Any, chunks: Iterator[Response]) -> Iterator[Response]:
    """Pass a turn's chunks on, and keep the session's books."""
    session.generator = None
    for chunk in chunks:
        session.response = chunk if session.response is None else session.response.extend(chunk)
        is_answer = chunk.finish_reason in ("stop", "length")
        if is_answer:
            session.history.append((prompt, session.response.text))
        yield chunk


def _log_failure(index: int, answer: Answer) -> None:
    """Who reads nothing but `text` shall see that an empty one was no answer."""
    if answer.error is not None and not isinstance(answer.error, CancelledError):
        _log.warning("prompt %d has no answer: %s: %s", index, answer.error.code, answer.error)
