"""Joins preprocessing and engine: prompts in, answers out, a fault stays with its request."""

import logging
import secrets
import struct
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from itertools import count
from typing import Any

from vlmflow_engine.answers import Answer, AnswerBuilder, Delta, error_response, times_of
from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.engine import Engine, EngineInfo
from vlmflow_engine.errors import (
    CancelledError,
    EngineFaultError,
    InvalidRequestError,
    RequestError,
)
from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.hub import resolve_model
from vlmflow_engine.inputs.builder import InputBuilder, PreparedInput
from vlmflow_engine.inputs.fetcher import NamedFetcher
from vlmflow_engine.inputs.preprocessor import Prepared, Preprocessor, ThreadPreprocessor, attempt
from vlmflow_engine.inputs.prompts import DEFAULT_OPTIONS, PromptOptions
from vlmflow_engine.inputs.template_config import ChatTemplateConfig
from vlmflow_engine.inputs.word_ids import banned_sequences, special_stop_ids
from vlmflow_engine.inputs.worker_frames import BuilderSpec
from vlmflow_engine.inputs.worker_pool import ProcessPreprocessor
from vlmflow_engine.models.registry import eos_token_ids, image_format, read_config
from vlmflow_engine.request import Request, Response
from vlmflow_engine.runner.grammar import Grammar, GrammarCompiler
from vlmflow_engine.sequence import Sequence
from vlmflow_engine.stats import EngineStats

_log = logging.getLogger(__name__)

# Longest wait for preprocessing, so that whoever steps can look after other things too.
_WAIT_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class DriverOptions:
    """What a driver is made from."""

    model_path: str
    engine: PytorchEngineConfig
    model_name: str | None = None  # what its user calls it, if that is not model_path
    chat_template: ChatTemplateConfig | None = None  # None: the checkpoint's own
    allowed_media_domains: list[str] | None = None  # None: all public hosts
    is_fetching: bool = True  # False: images come as bytes, and nothing else is looked at


@dataclass(slots=True)
class _Ticket:
    """A prompt in flight: one request for each of the n answers to it."""

    generation: GenerationConfig
    adapter_name: str | None
    is_streamed: bool
    submitted: float
    prepared: float = 0.0  # likewise of time.monotonic()
    grammar: "Future[Grammar] | None" = None  # None: no response_format
    running: set[int] = field(default_factory=set)  # request ids


class RequestDriver:
    """One model, answering tickets. Not thread-safe: one thread submits and steps."""

    def __init__(self, options: DriverOptions) -> None:
        """Load the model. Raises ModelError or ConfigError."""
        config = options.engine
        folder = resolve_model(
            options.model_path,
            config.download_dir,
            config.revision,
            require_pinned_revision=config.require_pinned_revision,
        )
        model_config = read_config(folder, config.hf_overrides)
        spec = BuilderSpec(
            folder=folder,
            image_format=image_format(model_config),
            takes_images=not config.language_model_only,
            fetch=_fetcher(options),
            max_image_pixels=config.max_image_pixels,
            chat_template=options.chat_template,
            model_path=options.model_name or options.model_path,
        )
        self._builder = spec.make()
        # Before the model is loaded: they start meanwhile.
        self._preprocessor = _start_preprocessor(spec, self._builder, config.num_preprocess_workers)
        try:
            self._engine = Engine(
                folder,
                model_config,
                config,
                self._builder.normalisation,
                eos_token_ids=eos_token_ids(folder, model_config) | self._builder.end_token_ids,
                rows_per_image=self._builder.max_image_rows,
                largest_image=self._builder.largest_image,
            )
            self._preprocessor.wait_until_ready()
        except BaseException:
            self._preprocessor.close()
            raise
        self._tickets: dict[int, _Ticket] = {}
        self._answers: dict[int, AnswerBuilder] = {}  # by request id
        self._request_ids = count()
        self._grammars = GrammarCompiler(
            self._builder.tokenizer.serialised,
            vocab_size=self._engine.vocab_size,
            eos_token_ids=self._engine.eos_token_ids,
        )
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="vlmflow-grammar")
        self._parked: list[tuple[int, PreparedInput]] = []  # prepared; their grammar is not

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats

    @property
    def num_in_flight(self) -> int:
        """Tickets submitted and not answered."""
        return len(self._tickets)

    def submit(
        self,
        ticket: int,
        prompt: Any,
        generation: GenerationConfig,
        *,
        options: PromptOptions = DEFAULT_OPTIONS,
        adapter_name: str | None = None,
        is_streamed: bool = False,
    ) -> None:
        """Take a prompt of any form under a ticket that is not in flight."""
        assert ticket not in self._tickets
        pending = _Ticket(
            self._with_stop_ids(generation), adapter_name, is_streamed, time.monotonic()
        )
        if generation.response_format is not None:
            pending.grammar = self._compiling.submit(
                self._grammars.compile, generation.response_format
            )
        self._tickets[ticket] = pending
        self._preprocessor.submit(ticket, prompt, options)

    def step(self) -> list[Answer | Delta]:
        """Make progress on what is in flight; return what came of it.

        Waits a moment if the only work is in preprocessing. Returns at once when nothing is in
        flight.
        """
        events = self._admit()
        if self._engine.num_unfinished:
            try:
                sequences = self._engine.step()
            except Exception as error:
                # Whose fault it was cannot be told from here: all that were running end with it.
                _log.exception("a step of the engine failed")
                reason = f"a step of the engine failed: {type(error).__name__}: {error}"
                for sequence in self._engine.abort_step():
                    events.append(self._failed(sequence, EngineFaultError(reason)))
            else:
                for sequence in sequences:
                    events += self._grown(sequence)
        return events

    def cancel(self, ticket: int) -> list[Answer | Delta]:
        """Take a ticket back. Harmless if it was answered."""
        pending = self._tickets.pop(ticket, None)
        if pending is None:
            return []
        for request_id in pending.running:
            self._engine.abort(request_id)
            del self._answers[request_id]
        return [self._answer_error(ticket, pending, CancelledError("taken back by the caller"))]

    def cancel_all(self) -> list[Answer | Delta]:
        """Take back whatever is in flight."""
        self._preprocessor.cancel_all()
        return [event for ticket in list(self._tickets) for event in self.cancel(ticket)]

    def close(self) -> None:
        """End the workers and let go of the model."""
        self._compiling.shutdown(wait=True, cancel_futures=True)
        self._preprocessor.close()
        del self._engine, self._builder

    def _admit(self) -> list[Answer | Delta]:
        """Move what is prepared into the engine; wait a little if there is nothing else."""
        events: list[Answer | Delta] = []
        parked: list[tuple[int, Prepared]] = list(self._parked)
        self._parked.clear()
        while True:
            is_idle = not events and not self._engine.num_unfinished
            if parked:
                item: tuple[int, Prepared] | None = parked.pop()
            else:
                item = self._take_prepared(is_idle)
            if item is None:
                return events
            ticket, prepared = item
            pending = self._tickets.get(ticket)
            if pending is None:  # taken back meanwhile
                continue
            if pending.grammar is not None and isinstance(prepared, PreparedInput):
                if is_idle:
                    wait([pending.grammar], timeout=_WAIT_SECONDS)
                if not pending.grammar.done():
                    self._parked.append((ticket, prepared))
                    continue
            refusal: RequestError | None
            if isinstance(prepared, RequestError):
                refusal = prepared
            else:
                # Whatever the request has brought with it, others must not fall with it.
                refusal = attempt(ticket, partial(self._add_requests, ticket, pending, prepared))
            if refusal is not None:
                for request_id in pending.running:
                    self._engine.abort(request_id)
                    del self._answers[request_id]
                del self._tickets[ticket]
                events.append(self._answer_error(ticket, pending, refusal))

    def _take_prepared(self, is_idle: bool) -> tuple[int, Prepared] | None:
        start = time.perf_counter()
        item = self._preprocessor.take(block=is_idle, timeout=_WAIT_SECONDS)
        if is_idle:
            self.stats.preprocess_wait_seconds += time.perf_counter() - start
        return item

    def _with_stop_ids(self, generation: GenerationConfig) -> GenerationConfig:
        """A copy whose stop words are text: those that are special tokens become stop ids."""
        words = list(generation.stop_words or ())
        if not generation.ignore_eos:
            words += self._builder.template.stop_words
        ids, words = special_stop_ids(self._builder.tokenizer, words)
        return replace(
            generation, stop_words=words, stop_token_ids=[*(generation.stop_token_ids or ()), *ids]
        )

    def _add_requests(self, ticket: int, pending: _Ticket, prepared: PreparedInput) -> None:
        pending.prepared = time.monotonic()
        generation = pending.generation
        seed = generation.random_seed
        seed = secrets.randbits(64) if seed is None else seed
        grammar = pending.grammar.result() if pending.grammar is not None else None
        banned = banned_sequences(self._builder.tokenizer, generation.bad_words or ())
        for choice in range(generation.n):
            request_id = next(self._request_ids)
            request = Request(
                request_id=request_id,
                prompt_token_ids=prepared.token_ids,
                images=prepared.images,
                generation=generation,
                seed=_choice_seed(seed, choice),
                adapter_name=pending.adapter_name,
                banned_sequences=banned,
                grammar=grammar,
            )
            self._engine.add_request(request)
            pending.running.add(request_id)
            self._answers[request_id] = AnswerBuilder(
                ticket,
                choice,
                generation,
                self._builder.tokenizer,
                is_streamed=pending.is_streamed,
            )

    def _grown(self, sequence: Sequence) -> list[Answer | Delta]:
        """Look at a sequence that got a token."""
        if sequence.error is not None:
            return [self._failed(sequence, InvalidRequestError(sequence.error))]
        answer = self._answers[sequence.request.request_id]
        if answer.push(sequence):
            self._engine.stop(sequence)
        if sequence.finish_reason is None:
            delta = answer.delta(sequence) if answer.is_streamed else None
            return [] if delta is None else [delta]
        delta, response, error = answer.finish(sequence, self._engine.take_outputs)
        if error is None:
            self.stats.num_finished += 1
        else:
            self.stats.num_failed += 1
        last = self._answered(sequence, response, error)
        return [last] if delta is None else [delta, last]

    def _failed(self, sequence: Sequence, error: RequestError) -> Answer:
        """Answer a sequence that the engine gave up."""
        self.stats.num_failed += 1
        choice = self._answers[sequence.request.request_id].choice
        response = error_response(error, sequence.num_prompt_tokens, choice)
        return self._answered(sequence, response, error)

    def _answered(
        self, sequence: Sequence, response: Response, error: RequestError | None
    ) -> Answer:
        request_id = sequence.request.request_id
        ticket = self._answers.pop(request_id).ticket
        pending = self._tickets[ticket]
        pending.running.remove(request_id)
        if not pending.running:
            del self._tickets[ticket]
        seconds = time.monotonic() - pending.submitted
        times = times_of(sequence, pending.submitted, pending.prepared)
        return Answer(ticket, response, error, seconds, not pending.running, times)

    def _answer_error(self, ticket: int, pending: _Ticket, error: RequestError) -> Answer:
        self.stats.num_failed += 1
        # It leads to frames that lead back to it: the prompt's images would wait for the collector.
        error.__traceback__ = None
        return Answer(ticket, error_response(error), error, time.monotonic() - pending.submitted)


def _fetcher(options: DriverOptions) -> NamedFetcher:
    if not options.is_fetching:
        return NamedFetcher("vlmflow_engine.inputs.fetcher:fetch_sent")
    return NamedFetcher(
        "vlmflow_engine.vl.fetch:MediaFetcher",
        allowed_media_domains=options.allowed_media_domains,
        allowed_local_media_path=options.engine.allowed_local_media_path,
    )


def _start_preprocessor(spec: BuilderSpec, builder: InputBuilder, num_workers: int) -> Preprocessor:
    """Processes, or a thread of this one if none are wanted."""
    if num_workers:
        return ProcessPreprocessor(spec, num_workers=num_workers)
    return ThreadPreprocessor(builder, num_workers=1)


def _choice_seed(seed: int, choice: int) -> int:
    """The seed of one of the n answers; the first one's is that of a request with n = 1."""
    if choice == 0:
        return seed
    digest = blake2b(struct.pack("<Qq", seed & (2**64 - 1), choice), digest_size=8).digest()
    mixed: int = struct.unpack("<Q", digest)[0]
    return mixed
