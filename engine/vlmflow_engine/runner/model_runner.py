"""Model, caches and sampler of one device behind one call: `launch(plan)`."""

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import ConfigError
from vlmflow_engine.image_format import Normalisation
from vlmflow_engine.kernels.attention_backend import AttentionBackend, choose_backend
from vlmflow_engine.layers.weight_format import choose_format
from vlmflow_engine.models.adapters import load_adapters
from vlmflow_engine.models.family import VisionLanguageModel
from vlmflow_engine.models.registry import load_model
from vlmflow_engine.plan import SampledToken, ScheduledSequence, StepPlan
from vlmflow_engine.request import ImageInput
from vlmflow_engine.runner.batch import build_model_input
from vlmflow_engine.runner.decode_step import DecodeStep, batch_sizes
from vlmflow_engine.runner.device import resolve_device, resolve_dtype
from vlmflow_engine.runner.drawer import Drawn, make_drawer
from vlmflow_engine.runner.encoder_runner import EncoderRunner
from vlmflow_engine.runner.kv_cache import allocate_kv_cache, allocate_layer
from vlmflow_engine.runner.memory_profile import peak_bytes, run_largest_step
from vlmflow_engine.runner.outputs import OutputCollector, RequestOutputs
from vlmflow_engine.runner.recorder import CudaGraphRecorder, EagerRecorder
from vlmflow_engine.runner.sequence_table import SequenceTable
from vlmflow_engine.runner.sizes import resolve_sizes
from vlmflow_engine.runner.stopwatch import Stopwatch
from vlmflow_engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step whose tokens come home when somebody asks for them."""

    sequences: list[Sequence]  # that get a token
    _drawn: Drawn
    _refusals: list[str | None]

    @property
    def is_known(self) -> bool:
        """Whether the host knows the tokens already, since it had a say in them."""
        return self._drawn.is_known

    def tokens(self) -> list[SampledToken]:
        """One for each of `sequences`. Waits for the device."""
        return [
            token if reason is None else SampledToken(-1, error=reason)
            for token, reason in zip(self._drawn.take(), self._refusals, strict=True)
        ]


class ModelRunner:
    """Loads a model and carries plans out. It reads sequences and never changes one."""

    def __init__(
        self,
        folder: Path,
        model_config: Any,
        config: PytorchEngineConfig,
        normalisation: Normalisation | None,
        largest_image: Callable[[], ImageInput | None] = lambda: None,
    ) -> None:
        """Load. `normalisation` is that of the images; None if none will come.

        largest_image  a GPU's KV cache is what is left beside it and a full batch
        """
        self.device = resolve_device(config)
        self.dtype = resolve_dtype(config, self.device)
        with torch.inference_mode():
            self.model = load_model(
                folder,
                model_config,
                dtype=self.dtype,
                device=self.device,
                language_model_only=config.language_model_only,
                weight_format=choose_format(self.device, self.dtype, config),
            )
            self.adapter_digests = load_adapters(
                config.adapters or {},
                self.model.decoder.linears,
                self.model.renames,
                dtype=self.dtype,
                device=self.device,
            )
        decoder = self.model.decoder
        self._is_invariant = config.batch_invariant
        self._backend = choose_backend(
            self.device, self.dtype, decoder.head_dim, config.quant_policy
        )
        has_triton = self._backend is AttentionBackend.TRITON
        if self._is_invariant:
            if not has_triton:
                raise ConfigError(
                    "batch_invariant=True takes the GPU's kernels; on a CPU compute in float32, "
                    "whose greedy answers do not depend on the batch"
                )
            decoder.make_invariant()
        self.sizes = resolve_sizes(
            config,
            max_positions=decoder.max_positions,
            device=self.device,
            has_triton=has_triton,
        )
        self._encoder: EncoderRunner | None = None
        if normalisation is not None:
            self._encoder = EncoderRunner(
                cast(VisionLanguageModel, self.model),  # what takes images has a tower
                normalisation,
                dtype=self.dtype,
                device=self.device,
                # One image at a time has the same shapes, and the same bits, every time.
                tiles_per_pass=1 if self._is_invariant else config.vision_max_batch_size,
            )
        self.kv_cache = allocate_kv_cache(
            decoder,
            config,
            sizes=self.sizes,
            dtype=self.dtype,
            device=self.device,
            reserved_bytes=self._step_bytes(config, largest_image),
        )
        self._async = config.async_scheduling
        self.table = SequenceTable(
            num_rows=self.sizes.max_batch_size,
            blocks_per_row=-(-self.sizes.session_len // self.sizes.block_size),
            device=self.device,
        )
        self._drawer = make_drawer(
            has_triton=has_triton,
            num_rows=self.sizes.max_batch_size,
            vocab_size=decoder.vocab_size,
            device=self.device,
            logprobs_mode=config.logprobs_mode,
        )
        self._decode_step: DecodeStep | None = None
        # Positions of two kinds, or transformers' own code, are laid out by the host.
        if self._backend.is_paged and decoder.is_recordable:
            has_graphs = self.device.type == "cuda" and not config.eager_mode
            self._decode_step = DecodeStep(
                decoder,
                self.kv_cache.layers,
                self.table,
                CudaGraphRecorder(self.device) if has_graphs else EagerRecorder(),
                sizes=batch_sizes(self.sizes.max_batch_size, is_padded=has_triton),
                block_size=self.sizes.block_size,
                is_invariant=self._is_invariant,
            )
        self._outputs = OutputCollector(self.model.decoder.logits)
        self._vision = Stopwatch(self.device)

    @torch.inference_mode()
    def _step_bytes(
        self, config: PytorchEngineConfig, largest_image: Callable[[], ImageInput | None]
    ) -> int:
        """What the largest step takes on a GPU beside the cache; 0 where nobody needs to know."""
        is_gpu = self.device.type == "cuda"
        if not (is_gpu and self._backend is AttentionBackend.TRITON) or config.num_blocks:
            return 0
        decoder = self.model.decoder
        one_block = [
            allocate_layer(
                (1, self.sizes.block_size, decoder.num_kv_heads, decoder.head_dim),
                quant_policy=config.quant_policy,
                dtype=self.dtype,
                device=self.device,
            )
            for _ in range(decoder.num_layers)
        ]
        peaks = [
            peak_bytes(
                lambda: run_largest_step(decoder, one_block, self.sizes, self.device),
                self.device,
                what="a full step",
            )
        ]
        image, encoder = largest_image(), self._encoder
        if image is not None and encoder is not None:
            peaks.append(
                peak_bytes(
                    lambda: encoder.run_largest_pass(image), self.device, what="the largest image"
                )
            )
        itemsize = self.dtype.itemsize
        embeddings = config.encoder_cache_rows * decoder.hidden_size * itemsize
        # CUDA graphs have memory of their own, most of it the logits in both dtypes.
        logits = (
            self.sizes.max_batch_size * decoder.vocab_size * (torch.float32.itemsize + itemsize)
        )
        return max(peaks) + embeddings + logits

    @property
    def is_async(self) -> bool:
        """Whether a step may be launched before the tokens of the one before it have come home."""
        if self.model.decoder.usual_context is not None:
            return False  # how a token's key is computed depends on how long the answer gets
        return self.device.type == "cuda" if self._async is None else self._async

    @property
    def attention_backend(self) -> str:
        """What computes attention over the cache: "triton", "c++ avx512_bf16", "torch"."""
        return self._backend.description

    @property
    def vision_seconds(self) -> float:
        """Time spent on encoding images so far."""
        return self._vision.seconds

    @torch.inference_mode()
    def prepare(self, plan: StepPlan) -> None:
        """Carry out what a plan asks for beside computing tokens: `launch` does, or nobody would.

        A plan may have nothing but that: whoever it was made for was sent away again.
        """
        for sequence in plan.preempted:
            self.release(sequence)
        if self._encoder is not None:
            self._encoder.evict(plan.evicted)
            if plan.encode:
                with self._vision.measure():
                    self._encoder.encode(list(plan.encode.values()))

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Queue a step on the device. On a CPU that is the same as to compute it."""
        self.prepare(plan)
        decoder = self.model.decoder
        admitted = self.table.admit(
            [item.sequence for item in plan.scheduled], num_position_axes=decoder.num_position_axes
        )
        for sequence in admitted:
            self._drawer.admit(self.table.row_of(sequence), sequence)
        if self._decode_step is not None and all(map(self._is_on_device, plan.scheduled)):
            return self._launch_decode(self._decode_step, plan.sampled)
        return self._launch_mixed(plan)

    def _is_on_device(self, item: ScheduledSequence) -> bool:
        """Whether a sequence computes its last token alone, and the device has all it takes."""
        request = item.sequence.request
        return (
            item.is_sampled
            and item.end - item.start == 1
            and request.adapter_name is None
            and not request.generation.wants_outputs
            and self.table.knows_last_token(item.sequence)
        )

    def _launch_decode(self, decode_step: DecodeStep, sequences: list[Sequence]) -> LaunchedStep:
        logits = decode_step.compute([self.table.row_of(sequence) for sequence in sequences])
        rows = decode_step.rows_tensor(len(sequences))
        return self._draw(logits, sequences, rows, self.table.num_tokens[rows] + 1)

    def _launch_mixed(self, plan: StepPlan) -> LaunchedStep:
        """Launch a step that the host lays out, token by token."""
        decoder = self.model.decoder
        step = build_model_input(
            plan,
            self.table,
            block_size=self.kv_cache.block_size,
            num_position_axes=decoder.num_position_axes,
            usual_context=decoder.usual_context,
            device=self.device,
            is_paged=self._backend.is_paged,
            is_invariant=self._is_invariant,
        )
        images = [] if self._encoder is None else self._encoder.rows_of(step.images)
        embeds = decoder.embed(step.token_ids, images)
        hidden = decoder(
            embeds,
            step.positions,
            step.hidden_rows,
            self.kv_cache.layers,
            step.attention,
            step.adapters,
        )
        for rows in step.outputs:
            self._outputs.collect(rows, hidden)
        if step.sampled is not None:
            hidden = hidden[step.sampled]
        logits = decoder.logits(hidden)
        return self._draw(logits, step.sequences, step.table_rows, step.num_tokens)

    def _draw(
        self, logits: Tensor, sequences: list[Sequence], rows: Tensor, num_tokens: Tensor
    ) -> LaunchedStep:
        """Draw the sequences' next tokens, where the next step finds them.

        rows, num_tokens  [num_sampled] int64, of the table, and with the tokens drawn
        """
        drawn = self._drawer.draw(logits, sequences, rows, num_tokens - 1)
        self.table.note(sequences, rows, drawn.chosen, num_tokens)
        return LaunchedStep(sequences, drawn, self._refusals(sequences))

    def _refusals(self, sequences: AbstractSequence[Sequence]) -> list[str | None]:
        """By sequence, why an image of it could not be encoded."""
        if self._encoder is None:
            return [None] * len(sequences)
        return [self._encoder.refusal(sequence.request.images) for sequence in sequences]

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended or was sent back to the queue."""
        row = self.table.release(sequence)
        if row is not None:
            self._drawer.release(row)

    def take_outputs(self, sequence: Sequence, num_output_tokens: int) -> RequestOutputs:
        """Hand out what a finished request asked for beside an answer of so many tokens."""
        return self._outputs.take(sequence, num_output_tokens)

    def forget(self, request_id: int) -> None:
        """Drop what is kept for a request that ends without an answer."""
        self._outputs.forget(request_id)

    def drop_embeddings(self, content_hashes: list[bytes]) -> None:
        """Forget image embeddings after a failed step."""
        if self._encoder is not None:
            self._encoder.evict(content_hashes)
