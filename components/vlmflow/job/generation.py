"""The generation options of a job: the engine's, less those whose outcome no result holds."""

from typing import Any

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


def parse_generation(values: dict[str, Any]) -> GenerationConfig:
    """Check the options of a record. Raises ConfigError, or TypeError for an unknown one."""
    config = GenerationConfig(**values)
    check_generation(config)
    return config
