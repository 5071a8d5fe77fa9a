"""What a caller may set: `PytorchEngineConfig` for an engine, `GenerationConfig` for a request."""

from dataclasses import dataclass
from typing import TypeGuard

from vlmflow_engine.errors import ConfigError

DTYPES = ("auto", "float32", "bfloat16", "float16")
_MAX_IMAGE_PIXELS = 178_956_970
DEVICE_TYPES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class PytorchEngineConfig:
    """How an engine runs. Names are LMDeploy's where LMDeploy has the field."""

    dtype: str = "auto"  # "auto": bfloat16 where the device computes in it, else float32
    device_type: str = "auto"  # "auto": cuda where there is a device, else cpu
    tp: int = 1
    session_len: int | None = None  # tokens of prompt and answer; None: what the model was made for
    max_batch_size: int | None = None  # sequences in a step; None: 64 on a CPU, 256 on a GPU
    cache_max_entry_count: float = 0.8  # share of the free device memory for the KV cache
    num_gpu_blocks: int = 0  # KV blocks on any device; 0: as many as the share allows
    block_size: int = 16  # tokens per KV block
    max_prefill_token_num: int = 2048  # tokens of a step, decoded ones included
    enable_prefix_caching: bool = True
    encoder_cache_rows: int = 16384  # image embeddings kept; grown to the largest single image
    max_image_pixels: int = 89_478_485  # of the undecoded image; Pillow's own warning limit
    num_preprocess_workers: int = 1  # threads that decode and resize images while the model runs

    def __post_init__(self) -> None:
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("device_type", self.device_type, DEVICE_TYPES)
        if self.tp != 1:
            raise ConfigError(
                f"tp={self.tp} is not supported: an engine uses one device; run one engine per GPU"
            )
        if self.session_len is not None:
            _check_at_least("session_len", self.session_len, 1)
        if self.max_batch_size is not None:
            _check_at_least("max_batch_size", self.max_batch_size, 1)
        share = self.cache_max_entry_count
        if not isinstance(share, int | float) or not 0 < share < 1:
            raise ConfigError(f"cache_max_entry_count must be in (0, 1), got {share!r}")
        _check_at_least("num_gpu_blocks", self.num_gpu_blocks, 0)
        _check_flag("enable_prefix_caching", self.enable_prefix_caching)
        for name in (
            "block_size",
            "max_prefill_token_num",
            "encoder_cache_rows",
            "max_image_pixels",
            "num_preprocess_workers",
        ):
            _check_at_least(name, getattr(self, name), 1)
        if self.max_image_pixels > _MAX_IMAGE_PIXELS:
            raise ConfigError(
                f"max_image_pixels must be at most {_MAX_IMAGE_PIXELS:,}, where Pillow itself "
                f"refuses, got {self.max_image_pixels:,}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """How one answer is generated. Greedy unless `do_sample`."""

    max_new_tokens: int | None = 512  # None: as many as the context holds
    do_sample: bool = False
    temperature: float = 0.8
    top_k: int = 50  # 0: the whole vocabulary
    top_p: float = 1.0
    min_p: float = 0.0
    random_seed: int | None = None  # None: a fresh one for each request
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()  # beside those the checkpoint names
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        # A list is what JSON gives and what LMDeploy takes.
        if isinstance(self.stop_token_ids, list | tuple | None):
            object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        ids = self.stop_token_ids
        if not isinstance(ids, tuple) or not all(_is_whole(i) for i in ids):
            raise ConfigError(f"stop_token_ids must be a list of token ids, got {ids!r}")
        if self.random_seed is not None and not _is_whole(self.random_seed):
            raise ConfigError(f"random_seed must be a whole number, got {self.random_seed!r}")
        for name in ("do_sample", "ignore_eos", "skip_special_tokens"):
            _check_flag(name, getattr(self, name))
        if self.max_new_tokens is not None:
            _check_at_least("max_new_tokens", self.max_new_tokens, 1)
        _check_within("temperature", self.temperature, 0, 2)
        _check_at_least("top_k", self.top_k, 0)
        _check_within("top_p", self.top_p, 0, 1)
        _check_within("min_p", self.min_p, 0, 1)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken: no sampling, or a temperature of zero."""
        return not self.do_sample or self.temperature == 0 or self.top_k == 1


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")


def _is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number that the wire can hold."""
    return type(value) is int and -(2**63) <= value < 2**64


def _check_at_least(name: str, value: object, least: int) -> None:
    if not _is_whole(value) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _check_within(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{name} must be in [{low}, {high}], got {value!r}")
