"""Model, caches and sampler of one device behind one call: `execute(plan)`."""

import logging
from pathlib import Path
from typing import Any, cast

import torch

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.image_format import Normalisation
from vlmflow_engine.models.adapters import load_adapters
from vlmflow_engine.models.family import VisionLanguageModel
from vlmflow_engine.models.registry import load_model
from vlmflow_engine.plan import SampledToken, StepPlan
from vlmflow_engine.runner.batch import build_model_input
from vlmflow_engine.runner.device import resolve_device, resolve_dtype
from vlmflow_engine.runner.encoder_runner import EncoderRunner
from vlmflow_engine.runner.kv_cache import allocate_kv_cache
from vlmflow_engine.runner.outputs import OutputCollector, RequestOutputs
from vlmflow_engine.runner.sampler import sample
from vlmflow_engine.runner.stopwatch import Stopwatch
from vlmflow_engine.sequence import Sequence

_log = logging.getLogger(__name__)


class ModelRunner:
    """Loads a model and carries plans out. It reads sequences and never changes one."""

    def __init__(
        self,
        folder: Path,
        model_config: Any,
        config: PytorchEngineConfig,
        normalisation: Normalisation | None,
    ) -> None:
        """`normalisation` is that of the images; None if none will come."""
        self.device = resolve_device(config)
        self.dtype = resolve_dtype(config, self.device)
        with torch.inference_mode():
            self.model = load_model(
                folder,
                model_config,
                dtype=self.dtype,
                device=self.device,
                language_model_only=config.language_model_only,
            )
            self.adapter_digests = load_adapters(
                config.adapters or {},
                self.model.decoder.linears,
                self.model.renames,
                dtype=self.dtype,
                device=self.device,
            )
        decoder = self.model.decoder
        self.session_len = _session_len(config.session_len, decoder.max_positions)
        default_batch_size = 256 if self.device.type == "cuda" else 64
        self.max_batch_size: int = config.max_batch_size or default_batch_size
        self.kv_cache = allocate_kv_cache(
            decoder,
            config,
            max_batch_size=self.max_batch_size,
            session_len=self.session_len,
            dtype=self.dtype,
            device=self.device,
        )
        self._logprobs_mode = config.logprobs_mode
        self._encoder: EncoderRunner | None = None
        if normalisation is not None:
            self._encoder = EncoderRunner(
                cast(VisionLanguageModel, self.model),  # what takes images has a tower
                normalisation,
                dtype=self.dtype,
                device=self.device,
                tiles_per_pass=config.vision_max_batch_size,
            )

        self._outputs = OutputCollector(self.model.decoder.logits)
        self._vision = Stopwatch(self.device)

    @property
    def vision_seconds(self) -> float:
        """Time spent on encoding images so far."""
        return self._vision.seconds

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> list[SampledToken]:
        """Compute a step; return one token for each of `plan.sampled`."""
        if self._encoder is not None:
            self._encoder.evict(plan.evicted)
            if plan.encode:
                with self._vision.measure():
                    self._encoder.encode(list(plan.encode.values()))
        step = build_model_input(
            plan,
            block_size=self.kv_cache.block_size,
            num_position_axes=self.model.decoder.num_position_axes,
            usual_context=self.model.decoder.usual_context,
            device=self.device,
        )
        embeds = self.model.decoder.embed(step.token_ids)
        if self._encoder is not None:
            self._encoder.scatter(embeds, step.images)
        decoder = self.model.decoder
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
        if len(step.sampled) < len(hidden):
            hidden = hidden[step.sampled]
        logits = decoder.logits(hidden)
        tokens = sample(logits, plan.sampled, logprobs_mode=self._logprobs_mode)
        if self._encoder is None:
            return tokens
        reasons = [self._encoder.refusal(sequence.request.images) for sequence in plan.sampled]
        return [
            token if reason is None else SampledToken(-1, error=reason)
            for token, reason in zip(tokens, reasons, strict=True)
        ]

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


def _session_len(wanted: int | None, max_positions: int) -> int:
    """The context: what is wanted, but no position that the model has never seen."""
    if wanted is not None and wanted > max_positions:
        # LMDeploy's own examples ask for 8192 of models made for 4096: no reason to stop.
        _log.warning(
            "session_len=%d exceeds the %d positions the model was made for, which is what it "
            "gets; if it can do with more, set max_position_embeddings in hf_overrides",
            wanted,
            max_positions,
        )
    return min(wanted or max_positions, max_positions)
