"""How an engine runs: `PytorchEngineConfig`, and LMDeploy's other configs on top of it."""

import logging
import os
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any

from vlmflow_engine.checks import (
    check_at_least,
    check_choice,
    check_flag,
    check_type,
    is_whole,
)
from vlmflow_engine.errors import ConfigError

_log = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICE_TYPES = ("auto", "cpu", "cuda")
FLOAT8_POLICY = 16  # LMDeploy's number for keys and values in float8 (e4m3)
QUANT_POLICIES = (0, 4, 8, FLOAT8_POLICY)
QUANTS = (None, "int8")
LOGPROBS_MODES = (None, "raw_logits", "raw_logprobs")
_MAX_IMAGE_PIXELS = 178_956_970

# LMDeploy's options for what this engine does not do: only these values are taken.
_ONE_DEVICE = "an engine uses one device; run one engine per GPU"
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "tp": ((1,), _ONE_DEVICE),
    "dp": ((1,), _ONE_DEVICE),
    "ep": ((1,), _ONE_DEVICE),
    "dp_rank": ((0,), _ONE_DEVICE),
    "attn_tp_size": ((None, 1), _ONE_DEVICE),
    "mlp_tp_size": ((None, 1), _ONE_DEVICE),
    "moe_tp_size": ((None, 1), _ONE_DEVICE),
    "distributed_executor_backend": ((None, "uni"), _ONE_DEVICE),
    "enable_microbatch": ((False,), "micro-batches are for several devices"),
    "enable_eplb": ((False,), "mixtures of experts are not supported"),
    "enable_return_routed_experts": ((False,), "mixtures of experts are not supported"),
    "custom_module_map": ((None,), "no code beside the engine's own is run"),
    "model_format": ((None, "hf"), "quantised weights are not supported yet"),
    "dllm_block_length": ((None,), "diffusion language models are not supported"),
    "dllm_denoising_steps": ((None,), "diffusion language models are not supported"),
    "enable_mp_engine": ((False,), "run the job, whose engine is a process of its own"),
}
# Options that mean nothing here; another value than the default is worth a line in the log.
_IGNORED: dict[str, Any] = {
    "prefill_interval": 16,
    "kernel_block_size": -1,
    "num_cpu_blocks": 0,
    "cudagraph_capture_batch_sizes": None,
    "empty_init": False,
    "mp_engine_backend": "mp",
    "enable_metrics": True,
    "prefix_cache_state_budget": 0,
    "prefix_cache_decode_state_interval": 0,
    "enable_transfer_obj_ref": False,
    "dllm_unmasking_strategy": "low_confidence_dynamic",
    "dllm_confidence_threshold": 0.85,
    "role": None,
    "migration_backend": None,
}


@dataclass(slots=True, kw_only=True)
class PytorchEngineConfig:
    """How an engine runs. Names are LMDeploy's where LMDeploy has the field.

        PytorchEngineConfig(session_len=4096, max_batch_size=128, quant_policy=8)

    Raises ConfigError for a value that is not allowed; what a machine or a model cannot meet is
    a ConfigError of `pipeline`.
    """

    # "float32", "bfloat16", "float16"; "auto": bfloat16 where the device computes in it, else
    # float32, which gives transformers' answers token by token.
    dtype: str = "auto"
    device_type: str = "auto"  # "cpu", "cuda"; "auto": cuda where there is a device, else cpu
    # Tokens of prompt and answer together; None: what the model was made for, which is the most.
    session_len: int | None = None
    max_batch_size: int | None = None  # sequences in a step; None: 64 on a CPU, 256 on a GPU
    # The KV cache: a share in (0, 1) of the free device memory, of which no more is taken than a
    # full batch of full-length sequences can use; or as a whole number its blocks.
    cache_max_entry_count: float | int = 0.8
    num_gpu_blocks: int = 0  # KV blocks on any device; 0: as cache_max_entry_count says
    # Tokens per KV block; None: 16 on a CPU, 64 on a GPU, whose kernels take 16, 32, 64 or 128.
    block_size: int | None = None
    # Tokens of a step, decoded ones included; None: 2048 on a CPU, 8192 on a GPU.
    max_prefill_token_num: int | None = None
    enable_prefix_caching: bool = True  # keep what was computed for prompts that begin alike
    # Keys and values are stored in 8 or 4 bits, with 16 in 8-bit floating point (e4m3), with 0 in
    # the dtype.
    quant_policy: int = 0
    # "int8", on a CPU: weights in 8 bits, inputs of linear layers rounded to 8; half the memory,
    # and faster. None: in the dtype.
    quant: str | None = None
    adapters: dict[str, str] | None = None  # name -> folder of a LoRA adapter in PEFT format
    language_model_only: bool = False  # neither vision tower nor images
    logprobs_mode: str | None = None  # "raw_logprobs" (the default) or "raw_logits"
    hf_overrides: dict[str, Any] | None = None  # fields of config.json that are to be others
    download_dir: str | None = None  # where a model of the hub is put; None: the hub's own cache
    revision: str | None = None  # branch, tag or commit of a model of the hub; None: main
    # Take a model of the hub only by the full hash of a commit, which never means another model.
    require_pinned_revision: bool = False
    eager_mode: bool = False  # no CUDA graphs
    # On a GPU: the same logits bit by bit, whatever else is in the batch; slower.
    batch_invariant: bool = False
    # Prepare a step while the one before it is computed; None: on a GPU, where that takes no time
    # from it.
    async_scheduling: bool | None = None
    encoder_cache_rows: int = 16384  # image embeddings kept; grown to the largest single image
    max_image_pixels: int = 89_478_485  # of the undecoded image; Pillow's own warning limit
    # Processes that decode images while the model runs; 0: a thread of this process.
    num_preprocess_workers: int = 1
    vision_max_batch_size: int = 8  # images in a pass of the vision tower
    allowed_local_media_path: str | None = None  # images on disk only below it; None: anywhere
    step_timeout: float = 600.0  # seconds after which a step counts as stuck

    # LMDeploy's for several devices. An engine uses one, so these stay as they are; for more GPUs
    # run an engine on each.

    tp: int = 1
    dp: int = 1
    dp_rank: int = 0
    ep: int = 1
    attn_tp_size: int | None = None
    mlp_tp_size: int | None = None
    moe_tp_size: int | None = None
    distributed_executor_backend: str | None = None
    enable_microbatch: bool = False

    # LMDeploy's for what this engine does not do: another value raises ConfigError.

    custom_module_map: Any = None
    enable_eplb: bool = False
    enable_mp_engine: bool = False
    model_format: str | None = None  # "hf" is taken too
    enable_return_routed_experts: bool = False
    dllm_block_length: int | None = None
    dllm_denoising_steps: int | None = None

    # LMDeploy's without a meaning here: another value has no effect, and is a line in the log.

    thread_safe: bool = False  # a Pipeline is, whatever is said here
    prefill_interval: int = 16
    kernel_block_size: int = -1
    num_cpu_blocks: int = 0
    cudagraph_capture_batch_sizes: list[int] | None = None
    prefix_cache_state_budget: int = 0
    prefix_cache_decode_state_interval: int = 0
    empty_init: bool = False
    mp_engine_backend: str = "mp"
    enable_metrics: bool = True
    enable_transfer_obj_ref: bool = False
    dllm_unmasking_strategy: str = "low_confidence_dynamic"
    dllm_confidence_threshold: float = 0.85
    role: Any = None
    migration_backend: Any = None

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise ConfigError if a value is not allowed; log what has no effect."""
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("device_type", self.device_type, DEVICE_TYPES)
        for name, (allowed, reason) in _REFUSED.items():
            value = getattr(self, name)
            if not any(value == item and type(value) is type(item) for item in allowed):
                raise ConfigError(f"{name}={value!r} is not supported: {reason}")
        for name, default in _IGNORED.items():
            if getattr(self, name) != default:
                _log.warning("%s=%r has no effect", name, getattr(self, name))
        for name in ("session_len", "max_batch_size", "block_size", "max_prefill_token_num"):
            if (value := getattr(self, name)) is not None:
                check_at_least(name, value, 1)
        share = self.cache_max_entry_count
        if not (is_whole(share) and share > 0) and not (isinstance(share, float) and 0 < share < 1):
            raise ConfigError(
                "cache_max_entry_count must be a share in (0, 1), or a whole number of blocks, "
                f"got {share!r}"
            )
        check_at_least("num_gpu_blocks", self.num_gpu_blocks, 0)
        check_choice("quant_policy", self.quant_policy, QUANT_POLICIES)
        check_choice("quant", self.quant, QUANTS)
        check_choice("logprobs_mode", self.logprobs_mode, LOGPROBS_MODES)
        for name in (
            "enable_prefix_caching",
            "language_model_only",
            "eager_mode",
            "batch_invariant",
            "require_pinned_revision",
        ):
            check_flag(name, getattr(self, name))
        check_type("async_scheduling", self.async_scheduling, bool, NoneType)
        for name in (
            "encoder_cache_rows",
            "max_image_pixels",
            "vision_max_batch_size",
        ):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("num_preprocess_workers", self.num_preprocess_workers, 0)
        if self.max_image_pixels > _MAX_IMAGE_PIXELS:
            raise ConfigError(
                f"max_image_pixels must be at most {_MAX_IMAGE_PIXELS:,}, where Pillow itself "
                f"refuses, got {self.max_image_pixels:,}"
            )
        check_type("step_timeout", self.step_timeout, int, float)
        if isinstance(self.step_timeout, bool) or not self.step_timeout > 0:
            raise ConfigError(f"step_timeout must be above 0 seconds, got {self.step_timeout!r}")
        for name in ("download_dir", "revision", "allowed_local_media_path"):
            check_type(name, getattr(self, name), str, os.PathLike, NoneType)
        adapters = self.adapters
        if adapters is not None and not (
            isinstance(adapters, dict)
            and all(isinstance(k, str) and isinstance(v, str) for k, v in adapters.items())
        ):
            raise ConfigError(f"adapters must be a dict of name to folder, got {adapters!r}")
        if self.hf_overrides is not None and not isinstance(self.hf_overrides, dict):
            raise ConfigError(f"hf_overrides must be a dict, got {self.hf_overrides!r}")

    @property
    def num_blocks(self) -> int:
        """KV blocks asked for by number; 0 if a share of the memory is asked for."""
        count = self.cache_max_entry_count
        return self.num_gpu_blocks or (count if isinstance(count, int) else 0)


@dataclass(slots=True, kw_only=True)
class TurbomindEngineConfig:
    """The options of LMDeploy's other engine, mapped onto PytorchEngineConfig.

        TurbomindEngineConfig(session_len=8192)

    One engine serves both names, with the same answers. Raises ConfigError as the other one does.
    """

    # As in PytorchEngineConfig.

    dtype: str = "auto"
    session_len: int | None = None
    max_batch_size: int | None = None
    cache_max_entry_count: float | int = 0.8
    cache_block_seq_len: int = 64  # its block_size
    max_prefill_token_num: int = 8192
    enable_prefix_caching: bool = True
    quant_policy: int = 0
    language_model_only: bool = False
    hf_overrides: dict[str, Any] | None = None
    download_dir: str | None = None
    revision: str | None = None
    model_format: str | None = None

    # For several devices or machines. An engine uses one device, so these stay as they are.

    tp: int = 1
    dp: int = 1
    cp: int = 1
    ep: int = 1
    device_num: int | None = None
    attn_tp_size: int | None = None
    attn_cp_size: int | None = None
    attn_dp_size: int | None = None
    mlp_tp_size: int | None = None
    mlp_dp_size: int | None = None
    outer_dp_size: int | None = None
    nnodes: int = 1
    node_rank: int = 0
    dist_init_addr: str | None = None
    devices: list[int] | None = None

    # Refused unless left as they are: hf_overrides names the scaling of positions.

    rope_scaling_factor: float = 0.0
    use_logn_attn: bool = False

    # Without a meaning here: another value has no effect, and is a line in the log.

    cache_chunk_size: int = -1
    cache_checkpoint_interval: int = 4096
    cache_prompt: str = "auto"
    cache_prompt_boundary_skip: int = 1
    cache_generation: str = "auto"
    num_tokens_per_iter: int = 0
    max_prefill_iters: int = 1
    async_: int = 1
    empty_init: bool = False
    communicator: str = "nccl"
    enable_metrics: bool = True

    def __post_init__(self) -> None:
        self.to_pytorch()

    def to_pytorch(self) -> PytorchEngineConfig:
        """Return the same wishes for our engine. Raises ConfigError for those it cannot meet."""
        for name, allowed in _TURBOMIND_ALLOWED.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(f"{name}={value!r} is not supported: {_ONE_DEVICE}")
        if self.rope_scaling_factor or self.use_logn_attn:
            raise ConfigError(
                "rope_scaling_factor and use_logn_attn are not supported; name the scaling in "
                "hf_overrides"
            )
        ours = {item.name for item in fields(PytorchEngineConfig)}
        for item in fields(self):
            is_known = item.name in ours or item.name in _TURBOMIND_ALLOWED
            is_known |= item.name == "cache_block_seq_len"
            if not is_known and getattr(self, item.name) != item.default:
                _log.warning("%s=%r has no effect", item.name, getattr(self, item.name))
        same = {f.name: getattr(self, f.name) for f in fields(self) if f.name in ours}
        return PytorchEngineConfig(**same, block_size=self.cache_block_seq_len)


_TURBOMIND_ALLOWED: dict[str, tuple[Any, ...]] = {
    "cp": (1,),
    "device_num": (None, 1),
    "attn_cp_size": (None, 1),
    "attn_dp_size": (None, 1),
    "mlp_dp_size": (None, 1),
    "outer_dp_size": (None, 1),
    "nnodes": (1,),
    "node_rank": (0,),
    "dist_init_addr": (None,),
    "devices": (None, [0]),
}


@dataclass(slots=True, kw_only=True)
class VisionConfig:
    """LMDeploy's way to say PytorchEngineConfig.vision_max_batch_size, which it overrides."""

    max_batch_size: int = 8  # images in a pass of the vision tower
    thread_safe: bool = False  # no effect: it is

    def __post_init__(self) -> None:
        check_at_least("VisionConfig.max_batch_size", self.max_batch_size, 1)


@dataclass(slots=True)
class SpeculativeConfig:
    """LMDeploy's options of speculative decoding, refused by `pipeline`: it has no draft model."""

    method: str  # LMDeploy's name of it
    model: str = ""  # of the draft
    num_speculative_tokens: int = 1  # tokens of a draft
