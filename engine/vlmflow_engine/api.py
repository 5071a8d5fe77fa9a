"""`pipeline(...)`: the engine's front door. Importing it imports no torch."""

import logging
import os
from dataclasses import replace
from types import NoneType
from typing import TYPE_CHECKING, Any

from vlmflow_engine.checks import check_type
from vlmflow_engine.config import (
    PytorchEngineConfig,
    SpeculativeConfig,
    TurbomindEngineConfig,
    VisionConfig,
)
from vlmflow_engine.errors import ConfigError
from vlmflow_engine.inputs.template_config import ChatTemplateConfig

if TYPE_CHECKING:
    from vlmflow_engine.offline import Pipeline

_log = logging.getLogger("vlmflow_engine")

# Of LMDeploy's, taken and without effect: what they are for, this engine finds out by itself.
_IGNORED = ("model_name", "max_log_len")


def pipeline(
    model_path: str | os.PathLike[str],
    backend_config: PytorchEngineConfig | TurbomindEngineConfig | None = None,
    chat_template_config: ChatTemplateConfig | None = None,
    log_level: str = "WARNING",
    max_log_len: int | None = None,
    trust_remote_code: bool = False,
    speculative_config: SpeculativeConfig | None = None,
    allowed_media_domains: list[str] | None = None,
    vision_config: VisionConfig | None = None,
    **more: Any,
) -> "Pipeline":
    """Load a vision-language model and return the Pipeline that answers with it.

        with pipeline("llava-hf/llava-1.5-7b-hf") as pipe:
            print(pipe(("What is it?", "photo.jpg")).text)

    model_path             folder of a checkpoint, or owner/name on the Hugging Face hub
    backend_config         how the engine runs; the defaults suit the machine it finds
    chat_template_config   another prompt format than the checkpoint's own
    log_level              of the logger "vlmflow_engine": DEBUG, INFO, WARNING, ERROR, CRITICAL
    max_log_len            LMDeploy's, as is model_name; no effect
    trust_remote_code      taken, and never obeyed: a checkpoint's code is not run
    speculative_config     refused: there is no draft model
    allowed_media_domains  whole names of hosts that http(s) images may be fetched from, which must
                           be public all the same; None: all public ones, an empty list: none
    vision_config          images in one pass of the vision tower

    The model stays loaded until the pipeline is closed, or nobody has it any more; a script may
    simply end.

    Raises ModelError if the checkpoint cannot be loaded, ConfigError if an option has a wrong value
    or cannot be met here, TypeError for an argument that is not listed.
    """
    for name in more:
        if name not in _IGNORED:
            raise TypeError(f"pipeline() got an unexpected keyword argument {name!r}")
    if speculative_config is not None:
        raise ConfigError("speculative_config is not supported: there is no draft model here")
    check_type("model_path", model_path, str, os.PathLike)
    check_type(
        "backend_config", backend_config, PytorchEngineConfig, TurbomindEngineConfig, NoneType
    )
    check_type("chat_template_config", chat_template_config, ChatTemplateConfig, NoneType)
    check_type("vision_config", vision_config, VisionConfig, NoneType)
    _set_log_level(log_level)
    if trust_remote_code:
        _log.warning("trust_remote_code=True has no effect: a checkpoint's own code is never run")
    if isinstance(backend_config, TurbomindEngineConfig):
        backend_config = backend_config.to_pytorch()
    backend_config = backend_config or PytorchEngineConfig()
    backend_config.check()
    if vision_config is not None:
        backend_config = replace(backend_config, vision_max_batch_size=vision_config.max_batch_size)
    from vlmflow_engine.offline import Pipeline

    return Pipeline(
        model_path,
        backend_config,
        chat_template=chat_template_config,
        allowed_media_domains=allowed_media_domains,
    )


def _set_log_level(level: str) -> None:
    try:
        _log.setLevel(level.upper() if isinstance(level, str) else level)
    except (TypeError, ValueError):
        raise ConfigError(
            f"log_level must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL, got {level!r}"
        ) from None
