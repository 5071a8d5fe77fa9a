"""The engine: requests in, tokens appended step by step, finished sequences out."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import ImageTooLargeError, InvalidRequestError, PromptTooLongError
from vlmflow_engine.image_format import Normalisation
from vlmflow_engine.plan import StepPlan
from vlmflow_engine.request import ImageInput, Request
from vlmflow_engine.runner.device import device_name
from vlmflow_engine.runner.model_runner import LaunchedStep, ModelRunner
from vlmflow_engine.runner.outputs import RequestOutputs
from vlmflow_engine.scheduler.block_manager import BlockManager
from vlmflow_engine.scheduler.encoder_cache import EncoderCache
from vlmflow_engine.scheduler.scheduler import Scheduler
from vlmflow_engine.sequence import Sequence
from vlmflow_engine.stats import EngineStats, StepStats
from vlmflow_engine.step_times import stamp_times


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What was resolved at start-up, of the config, the model and the machine."""

    device: str  # as torch names it
    dtype: str  # that the model computes in
    quant: str | None  # "int8": most weights are kept in 8 bits
    attention_backend: str  # "triton", "c++ " and the instruction set, or "torch"
    session_len: int  # tokens of prompt and answer; no more than the KV cache holds
    max_batch_size: int  # sequences in a step
    num_blocks: int  # of the KV cache
    block_size: int  # tokens per KV block
    kv_cache_bytes: int  # of all blocks
    quant_policy: int  # bits of a stored key or value; 0: the dtype's; 16: 8, as float8 (e4m3)
    device_name: str  # of the GPU, or the CPU's architecture
    python_version: str  # such as "3.11.7"
    torch_version: str  # with its build, such as "2.13.0+cpu"
    transformers_version: str  # such as "5.8.0"


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step on its way."""

    plan: StepPlan
    step: LaunchedStep
    stats: StepStats
    started_at: float  # of time.monotonic()


class Engine:
    """Schedules and computes; knows neither text nor files."""

    def __init__(
        self,
        folder: Path,
        model_config: Any,
        config: PytorchEngineConfig,
        normalisation: Normalisation | None,
        *,
        eos_token_ids: frozenset[int],
        rows_per_image: int,
        largest_image: Callable[[], ImageInput | None] = lambda: None,
    ) -> None:
        """Load the model. Without images `normalisation` is None, and `rows_per_image` 0.

        largest_image  for the GPU to find out how much memory is left beside it
        """
        self._runner = ModelRunner(folder, model_config, config, normalisation, largest_image)
        self._eos_token_ids = eos_token_ids
        self._quant, self._quant_policy = config.quant, config.quant_policy
        self.stats = EngineStats(max_batch_size=self._runner.sizes.max_batch_size)
        kv_cache = self._runner.kv_cache
        self._scheduler = Scheduler(
            BlockManager(
                num_blocks=kv_cache.num_blocks,
                block_size=kv_cache.block_size,
                enable_prefix_caching=config.enable_prefix_caching,
                adapter_digests=self._runner.adapter_digests,
                usual_context=self._runner.model.decoder.usual_context,
            ),
            # One image must always fit.
            EncoderCache(max(config.encoder_cache_rows, rows_per_image)),
            max_batch_size=self._runner.sizes.max_batch_size,
            max_num_tokens=self._runner.sizes.max_num_tokens,
            stats=self.stats,
        )
        # A sequence that outgrew the whole pool could never run.
        self._max_num_tokens = min(
            self._runner.sizes.session_len, kv_cache.num_blocks * kv_cache.block_size
        )
        self._sequences: dict[int, Sequence] = {}
        # The next step is prepared while this one is computed; its tokens come home one call later.
        self._is_async = self._runner.is_async
        self._launched: _Launched | None = None
        self._busy_since = 0.0  # of time.perf_counter()
        self._unrecorded_seconds = 0.0
        self._vision_seconds = 0.0  # that steps were told of

    @property
    def info(self) -> EngineInfo:
        runner, kv_cache = self._runner, self._runner.kv_cache
        return EngineInfo(
            device=str(runner.device),
            dtype=str(runner.dtype).removeprefix("torch."),
            quant=self._quant,
            attention_backend=runner.attention_backend,
            session_len=self._max_num_tokens,
            max_batch_size=runner.sizes.max_batch_size,
            num_blocks=kv_cache.num_blocks,
            block_size=kv_cache.block_size,
            kv_cache_bytes=kv_cache.num_bytes,
            quant_policy=self._quant_policy,
            device_name=device_name(runner.device),
            python_version=platform.python_version(),
            torch_version=version("torch"),
            transformers_version=version("transformers"),
        )

    @property
    def vocab_size(self) -> int:
        """The width of the logits."""
        return self._runner.model.decoder.vocab_size

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The ids that end an answer."""
        return self._eos_token_ids

    @property
    def num_unfinished(self) -> int:
        return len(self._sequences)

    def add_request(self, request: Request) -> None:
        """Queue a request. Raises InvalidRequestError, PromptTooLongError, ImageTooLargeError."""
        generation, num_prompt_tokens = request.generation, len(request.prompt_token_ids)
        if generation.max_new_tokens is not None and generation.max_new_tokens < 1:
            raise InvalidRequestError(
                f"max_new_tokens must be at least 1, got {generation.max_new_tokens}"
            )
        self._check_adapter(request.adapter_name)
        self._check_ids(request)
        if num_prompt_tokens >= self._max_num_tokens:
            raise PromptTooLongError(
                f"{num_prompt_tokens} prompt tokens leave no room for an answer in a context of "
                f"{self._max_num_tokens}; shorten the prompt or raise session_len"
            )
        capacity = self._scheduler.encoder_cache.capacity
        for image in request.images:
            if image.num_rows > capacity:
                raise ImageTooLargeError(
                    f"an image of {image.num_rows} embedding rows exceeds "
                    f"encoder_cache_rows={capacity}; raise it"
                )
        max_num_tokens = self._max_num_tokens
        if generation.max_new_tokens is not None:
            max_num_tokens = min(max_num_tokens, num_prompt_tokens + generation.max_new_tokens)
        stop_token_ids = frozenset(generation.stop_token_ids or ())
        # Where a format says when an answer is complete, its end is no choice of the model.
        if not generation.ignore_eos or request.grammar is not None:
            stop_token_ids |= self._eos_token_ids
        sequence = Sequence(request, max_num_tokens=max_num_tokens, stop_token_ids=stop_token_ids)
        self._sequences[request.request_id] = sequence
        self._scheduler.add(sequence)

    def step(self) -> list[Sequence]:
        """Compute one step and return the sequences that got a token.

        Those with a `finish_reason` are taken out; `take_outputs` has what else they asked for.
        With asynchronous scheduling the step that is launched is not the one whose tokens are
        returned: that was launched by the call before, and computed while this one was prepared.
        """
        # The time of a call that brought nothing home belongs to the step that it launched.
        self._busy_since = time.perf_counter() - self._unrecorded_seconds
        grown: list[Sequence] = []
        launched, self._launched = self._launched, None
        plan = self._scheduler.schedule()
        if plan.scheduled or launched is None:
            self._launched = self._launch(plan)
        else:  # nothing to compute, but somebody may have been sent away
            self._runner.prepare(plan)
            self.stats.num_preemptions += len(plan.preempted)
            self.stats.num_encoded_images += len(plan.encode)
        if launched is not None:
            grown += self._settle(launched)
        if self._launched is not None and (not self._is_async or self._launched.step.is_known):
            launched, self._launched = self._launched, None
            grown += self._settle(launched)
        self._unrecorded_seconds = time.perf_counter() - self._busy_since
        return grown

    def _launch(self, plan: StepPlan) -> "_Launched":
        started_at = time.monotonic()
        step = self._runner.launch(plan)
        stats = self._step_stats(plan)  # while the plan's sequences still hold their blocks
        self._scheduler.advance(plan)
        for sequence in step.sequences:
            sequence.num_pending += 1
        return _Launched(plan, step, stats, started_at)

    def _settle(self, launched: "_Launched") -> list[Sequence]:
        """Bring a step's tokens home. Those of a sequence that ended meanwhile are nobody's."""
        tokens = launched.step.tokens()
        grown: list[Sequence] = []
        for sequence, token in zip(launched.step.sequences, tokens, strict=True):
            sequence.num_pending -= 1
            if sequence.is_finished:
                continue
            grown.append(sequence)
            if token.error is None:
                sequence.append(token.token_id)
            else:
                sequence.fail(token.error)
                self._runner.forget(sequence.request.request_id)
            if token.logprobs is not None:
                sequence.logprobs.append(token.logprobs)
            if sequence.finish_reason is not None:
                self._remove(sequence)
            elif sequence.num_tokens - 1 == self._runner.model.decoder.usual_context:
                # With longer positions all its keys are others, as for transformers.
                sequence.block_hashes.clear()
                self._scheduler.preempt(sequence)
                self._runner.release(sequence)
        self._record(launched, num_tokens=len(grown))
        return grown

    def _record(self, launched: "_Launched", *, num_tokens: int) -> None:
        """Count a step that has come home."""
        # On a GPU: of all images that it has encoded by now.
        vision_seconds, seen = self._runner.vision_seconds, self._vision_seconds
        self._vision_seconds = vision_seconds
        stamp_times(launched.plan, launched.started_at, vision_seconds - seen)
        self.stats.num_output_tokens += num_tokens
        now = time.perf_counter()
        self.stats.record(
            replace(launched.stats, vision_seconds=vision_seconds - seen), now - self._busy_since
        )
        self._busy_since = now

    def stop(self, sequence: Sequence) -> None:
        """End a sequence whose text is complete; it may have reached its last token just now."""
        if sequence.finish_reason is None:
            self._remove(sequence)
        sequence.finish_reason = "stop"

    def take_outputs(self, sequence: Sequence, num_output_tokens: int) -> RequestOutputs:
        """Hand out what a finished sequence asked for beside an answer of so many tokens."""
        return self._runner.take_outputs(sequence, num_output_tokens)

    def abort(self, request_id: int) -> None:
        """Take a request out. Harmless if it has finished."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            sequence.finish_reason = "abort"
            self._remove(sequence)
            self._runner.forget(request_id)

    def abort_step(self) -> list[Sequence]:
        """After `step` raised: take out whoever was running, and distrust all that is cached."""
        self._launched = None
        for sequence in self._sequences.values():
            sequence.num_pending = 0  # it is drawn again, and is the same
        aborted = list(self._scheduler.running)
        for sequence in aborted:
            self.abort(sequence.request.request_id)
        self._runner.drop_embeddings(self._scheduler.forget_caches())
        return aborted

    def _check_adapter(self, name: str | None) -> None:
        known = self._runner.adapter_digests
        if name is not None and not (isinstance(name, str) and name in known):
            raise InvalidRequestError(
                f"adapter_name={name!r} is not known; the engine's adapters are "
                f"{', '.join(map(repr, known)) or 'none'}"
            )

    def _check_ids(self, request: Request) -> None:
        """A token without an embedding would end the step of all that run with it."""
        ids, limit = request.prompt_token_ids, self.vocab_size
        if not ids or max(ids) < limit:
            return
        places = {place for image in request.images for place in range(image.offset, image.end)}
        for place, token_id in enumerate(ids):
            if token_id >= limit and place not in places:
                raise InvalidRequestError(
                    f"the prompt has token {token_id}, but the model's vocabulary ends at "
                    f"{limit - 1}; is the tokenizer of this checkpoint?"
                )

    def _remove(self, sequence: Sequence) -> None:
        self._scheduler.finish(sequence)
        self._runner.release(sequence)
        del self._sequences[sequence.request.request_id]

    def _step_stats(self, plan: StepPlan) -> StepStats:
        num_decode_tokens = sum(item.is_decode for item in plan.scheduled)
        return StepStats(
            num_prefill_tokens=plan.num_tokens - num_decode_tokens,
            num_decode_tokens=num_decode_tokens,
            num_encoded_images=len(plan.encode),
            num_running=len(plan.scheduled),
            num_waiting=len(self._scheduler.waiting),
            num_preempted=len(plan.preempted),
            kv_usage=self._scheduler.block_manager.usage,
            vision_seconds=0.0,
        )
