"""The generation options of a job: the engine's, less those whose outcome no result holds."""

from dataclasses import asdict
from hashlib import blake2b
from typing import Any

from vlmflow.job.record import Record
from vlmflow_engine.errors import ConfigError
from vlmflow_engine.generation import GenerationConfig

# Tensors and lists that a result line has no room for, and code that cannot stand in a manifest.
_LIBRARY_ONLY = (
    "n",
    "logprobs",
    "output_logits",
    "output_last_hidden_state",
    "return_ppl",
    "logits_processors",
)
_DEFAULTS = GenerationConfig()


def check_generation(config: GenerationConfig) -> None:
    """Raise ConfigError for an option that only callers of the engine itself can use."""
    for name in _LIBRARY_ONLY:
        if getattr(config, name) != getattr(_DEFAULTS, name):
            raise ConfigError(
                f"{name} is not for jobs: a result holds one text; use the engine by itself"
            )
    if config.max_new_tokens is not None and config.max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens must be at least 1, got {config.max_new_tokens}")


class RecordOptions:
    """What the engine is told for each record: the job's options under the record's own."""

    def __init__(self, config: GenerationConfig, seed: int) -> None:
        self._seed = seed
        defaults = asdict(_DEFAULTS)
        # Only what differs: most records share a dictionary that says next to nothing.
        self._common = {
            name: value for name, value in asdict(config).items() if value != defaults[name]
        }
        self._is_common_seeded = _wants_seed(self._common)

    def of(self, record: Record) -> tuple[dict[str, Any], bool]:
        """The record's options, without most of GenerationConfig's defaults, and whether among them
        is a seed of its own.
        """
        if record.generation:
            options = {**self._common, **record.generation}
            wants_seed = _wants_seed(options)
        else:
            options, wants_seed = self._common, self._is_common_seeded
        if not wants_seed:
            return options, False
        # Of the record, not of the attempt: a resumed job draws what it would have drawn.
        name = f"{self._seed}\0{record.record_id}".encode()
        seed = int.from_bytes(blake2b(name, digest_size=8).digest(), "little")
        return {**options, "random_seed": seed >> 1}, True


def _wants_seed(options: dict[str, Any]) -> bool:
    try:
        config = GenerationConfig(**options)
    except ConfigError:  # each for itself was right; together the engine will refuse them
        return False
    return not config.is_greedy and config.random_seed is None


def parse_generation(values: dict[str, Any]) -> GenerationConfig:
    """Check the options of a record. Raises ConfigError, or TypeError for an unknown one."""
    config = GenerationConfig(**values)
    check_generation(config)
    return config
