"""`pipeline(...)`: the engine's front door. Importing it imports no torch."""

from typing import TYPE_CHECKING

from vlmflow_engine.config import PytorchEngineConfig

if TYPE_CHECKING:
    from vlmflow_engine.offline import Pipeline


def pipeline(model_path: str, *, backend_config: PytorchEngineConfig | None = None) -> "Pipeline":
    """Load a vision-language model for batches of prompts.

    model_path      folder of a checkpoint in Hugging Face format
    backend_config  how the engine runs; the defaults suit the machine it finds

    Raises ModelError if the checkpoint cannot be loaded, ConfigError if the options cannot be met.
    """
    from vlmflow_engine.offline import Pipeline

    return Pipeline(model_path, backend_config)
