"""Model, caches and sampler of one device behind one call: `execute(plan)`."""

from pathlib import Path
from typing import Any

import torch

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import ConfigError
from vlmflow_engine.image_format import Normalisation
from vlmflow_engine.models.adapters import load_adapters
from vlmflow_engine.models.registry import load_model
from vlmflow_engine.plan import SampledToken, StepPlan
from vlmflow_engine.runner.batch import build_model_input
from vlmflow_engine.runner.device import resolve_device, resolve_dtype
from vlmflow_engine.runner.encoder_runner import EncoderRunner
from vlmflow_engine.runner.kv_cache import allocate_kv_cache
from vlmflow_engine.runner.sampler import sample


class ModelRunner:
    """Loads a model and carries plans out. It reads sequences and never changes one."""

    def __init__(
        self,
        folder: Path,
        model_config: Any,
        config: PytorchEngineConfig,
        normalisation: Normalisation,
    ) -> None:
        self.device = resolve_device(config)
        self.dtype = resolve_dtype(config, self.device)
        with torch.inference_mode():
            self.model = load_model(folder, model_config, dtype=self.dtype, device=self.device)
            self.adapter_digests = load_adapters(
                config.adapters or {},
                self.model.decoder.linears,
                self.model.renames,
                dtype=self.dtype,
                device=self.device,
            )
        decoder = self.model.decoder
        if config.session_len is not None and config.session_len > decoder.max_positions:
            raise ConfigError(
                f"session_len={config.session_len} exceeds the {decoder.max_positions} positions "
                "the model was made for"
            )
        self.session_len: int = config.session_len or decoder.max_positions
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
        self._encoder = EncoderRunner(
            self.model, normalisation, dtype=self.dtype, device=self.device
        )

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> list[SampledToken]:
        """Compute a step; return one token for each of `plan.sampled`."""
        self._encoder.evict(plan.evicted)
        self._encoder.encode(list(plan.encode.values()))
        step = build_model_input(plan, block_size=self.kv_cache.block_size, device=self.device)
        embeds = self.model.decoder.embed(step.token_ids)
        self._encoder.scatter(embeds, step.images)
        logits = self.model.decoder(
            embeds,
            step.positions,
            step.sampled_rows,
            self.kv_cache.layers,
            step.attention,
            step.adapters,
        )
        return sample(logits, plan.sampled)

    def drop_embeddings(self, content_hashes: list[bytes]) -> None:
        """Forget image embeddings after a failed step."""
        self._encoder.evict(content_hashes)
