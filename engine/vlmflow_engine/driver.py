"""Joins preprocessing and engine: prompts in, answers out, a fault stays with its request."""

import logging
import secrets
import time
from dataclasses import dataclass
from typing import Any

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.engine import Engine, EngineInfo
from vlmflow_engine.errors import CancelledError, EngineFaultError, RequestError
from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.hub import resolve_model
from vlmflow_engine.inputs.builder import InputBuilder, MediaFetcher, PreparedInput
from vlmflow_engine.inputs.preprocessor import Preprocessor
from vlmflow_engine.models.registry import eos_token_ids, image_format, read_config
from vlmflow_engine.request import Request, Response
from vlmflow_engine.sequence import Sequence
from vlmflow_engine.stats import EngineStats

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a prompt. `error` is set when `response.finish_reason` is "error"."""

    ticket: int
    response: Response
    error: RequestError | None
    seconds: float  # from submit to here


@dataclass(frozen=True, slots=True)
class _Pending:
    generation: GenerationConfig
    submitted: float


class RequestDriver:
    """One model, answering tickets. Not thread-safe: one thread submits and steps."""

    def __init__(self, model_path: str, config: PytorchEngineConfig, fetch: MediaFetcher) -> None:
        """Load the model. Raises ModelError or ConfigError."""
        folder = resolve_model(model_path, config.download_dir, config.revision)
        model_config = read_config(folder, config.hf_overrides)
        form = None if config.language_model_only else image_format(model_config)
        self._builder = InputBuilder(folder, form, fetch, max_image_pixels=config.max_image_pixels)
        self._engine = Engine(
            folder,
            model_config,
            config,
            self._builder.normalisation,
            eos_token_ids=eos_token_ids(folder, model_config),
            rows_per_image=form.num_rows if form else 0,
        )
        self._preprocessor = Preprocessor(self._builder, num_workers=config.num_preprocess_workers)
        self._pending: dict[int, _Pending] = {}

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats

    @property
    def num_in_flight(self) -> int:
        """Tickets submitted and not answered."""
        return len(self._pending)

    def submit(self, ticket: int, prompt: Any, generation: GenerationConfig) -> None:
        """Take a prompt of any form under a ticket that is not in flight."""
        assert ticket not in self._pending
        self._pending[ticket] = _Pending(generation, time.monotonic())
        self._preprocessor.submit(ticket, prompt)

    def step(self) -> list[Answer]:
        """Make progress on what is in flight; return the answers that came of it.

        Blocks while the only work is in preprocessing. Returns at once when nothing is in flight.
        """
        answers = self._admit()
        if self._engine.num_unfinished:
            try:
                finished = self._engine.step()
            except Exception as error:
                # Whose fault it was cannot be told from here: all that were running end with it.
                _log.exception("a step of the engine failed")
                reason = f"a step of the engine failed: {type(error).__name__}: {error}"
                for sequence in self._engine.abort_step():
                    ticket = sequence.request.request_id
                    answers.append(self._error(ticket, EngineFaultError(reason), sequence))
            else:
                answers += [self._finished(sequence) for sequence in finished]
        return answers

    def cancel_all(self) -> list[Answer]:
        """Take back whatever is in flight, and answer it as cancelled."""
        while self._preprocessor.num_pending:
            self._preprocessor.take(block=True)
        answers = []
        for ticket in list(self._pending):
            self._engine.abort(ticket)
            answers.append(self._error(ticket, CancelledError("taken back by the caller")))
        return answers

    def close(self) -> None:
        """End the worker threads and let go of the model."""
        self._preprocessor.close()
        del self._engine, self._builder

    def _admit(self) -> list[Answer]:
        """Move what is prepared into the engine; wait for the first if there is nothing else."""
        failed: list[Answer] = []
        while True:
            item = self._preprocessor.take(block=not failed and not self._engine.num_unfinished)
            if item is None:
                return failed
            ticket, prepared = item
            try:
                if isinstance(prepared, RequestError):
                    raise prepared
                self._engine.add_request(self._request(ticket, prepared))
            except RequestError as error:
                failed.append(self._error(ticket, error))

    def _request(self, ticket: int, prepared: PreparedInput) -> Request:
        generation = self._pending[ticket].generation
        seed = generation.random_seed
        return Request(
            request_id=ticket,
            prompt_token_ids=prepared.token_ids,
            images=prepared.images,
            generation=generation,
            seed=secrets.randbits(64) if seed is None else seed,
        )

    def _finished(self, sequence: Sequence) -> Answer:
        ticket = sequence.request.request_id
        pending = self._pending.pop(ticket)
        token_ids = sequence.output_token_ids
        if sequence.finish_reason == "stop":
            token_ids.pop()
        text = self._builder.tokenizer.decode(
            token_ids, skip_special_tokens=pending.generation.skip_special_tokens
        )
        response = Response(
            text=text,
            generate_token_len=len(token_ids),
            input_token_len=sequence.num_prompt_tokens,
            finish_reason=sequence.finish_reason,
            token_ids=token_ids,
            cached_tokens=sequence.num_cached_tokens,
        )
        self.stats.num_finished += 1
        return Answer(ticket, response, None, time.monotonic() - pending.submitted)

    def _error(self, ticket: int, error: RequestError, sequence: Sequence | None = None) -> Answer:
        pending = self._pending.pop(ticket)
        self.stats.num_failed += 1
        response = error_response(error, sequence.num_prompt_tokens if sequence else 0)
        return Answer(ticket, response, error, time.monotonic() - pending.submitted)


def error_response(error: RequestError, input_token_len: int = 0) -> Response:
    """The response of a request that failed."""
    return Response(
        text="",
        generate_token_len=0,
        input_token_len=input_token_len,
        finish_reason="error",
        error_code=error.code,
        error_message=str(error),
    )
