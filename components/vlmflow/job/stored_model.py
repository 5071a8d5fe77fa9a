"""What an MLflow model of ours says: which checkpoint, and how it is run. Plain JSON, no secret."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vlmflow.job.errors import SpecError
from vlmflow.job.generation import check_generation
from vlmflow.job.spec import JobSpec
from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import ConfigError
from vlmflow_engine.generation import GenerationConfig

FORMAT = 1
_FORMAT_KEY = "vlmflow_format"

# Nothing of one machine's folders, nor of what may be read or fetched: whoever runs a model says
# that, not who logged it.
_ENGINE_FIELDS = frozenset(
    (
        "block_size",
        "cache_max_entry_count",
        "device_type",
        "dtype",
        "enable_prefix_caching",
        "encoder_cache_rows",
        "hf_overrides",
        "language_model_only",
        "max_batch_size",
        "max_image_pixels",
        "max_prefill_token_num",
        "num_gpu_blocks",
        "num_preprocess_workers",
        "quant",
        "quant_policy",
        "session_len",
        "vision_max_batch_size",
    )
)
_DEFAULTS: dict[str, dict[str, Any]] = {
    "engine": asdict(PytorchEngineConfig()),
    "generation": asdict(GenerationConfig()),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A checkpoint by reference, and the options that are not at their defaults."""

    reference: str  # absolute folder, owner/name of the model hub, or s3://bucket/prefix
    revision: str | None = None  # the commit, of a model of the hub
    endpoint_url: str | None = None  # of an S3 store other than AWS
    digest: str  # of the checkpoint's files; what is found later must have it
    has_weights: bool = False  # a copy of the files is among the model's own
    engine: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)

    def as_config(self) -> dict[str, Any]:
        """As `from_config` takes it."""
        return {_FORMAT_KEY: FORMAT, **asdict(self)}

    @classmethod
    def from_config(cls, config: dict[str, Any], uri: str) -> "StoredModel":
        """Read what was stored with the model `uri`. Raises SpecError if it is not ours."""
        values = dict(config)
        version = values.pop(_FORMAT_KEY, None)
        if version is None:
            raise SpecError(
                f"model {uri!r} was not logged by `vlmflow log-model`: it names no checkpoint"
            )
        if version != FORMAT:
            raise SpecError(
                f"model {uri!r} has form {version!r}, of another vlmflow; this one knows {FORMAT}"
            )
        try:
            stored = cls(**values)
            unknown = stored.engine.keys() - _ENGINE_FIELDS
            if unknown:
                raise ConfigError(f"engine options {sorted(unknown)} cannot be stored")
            PytorchEngineConfig(**stored.engine)
            check_generation(GenerationConfig(**stored.generation))
        except (TypeError, AttributeError, ConfigError) as error:
            raise SpecError(f"model {uri!r} is damaged: {error}; log it again") from error
        return stored


def options_to_store(
    engine: PytorchEngineConfig, generation: GenerationConfig
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of both that are not at their defaults and may be stored."""
    engine_values = _changed("engine", asdict(engine))
    return (
        {name: value for name, value in engine_values.items() if name in _ENGINE_FIELDS},
        _changed("generation", asdict(generation)),
    )


def with_stored_options(spec: JobSpec, stored: StoredModel) -> tuple[JobSpec, list[str]]:
    """Return the spec with the stored options where it has defaults, and which those were."""
    taken: dict[str, dict[str, Any]] = {}
    for group, values in (("engine", stored.engine), ("generation", stored.generation)):
        own = getattr(spec, group)
        taken[group] = {
            name: value
            for name, value in values.items()
            if getattr(own, name) == _DEFAULTS[group][name]
        }
    told = [f"{group}.{name}={taken[group][name]!r}" for group in taken for name in taken[group]]
    update: dict[str, Any] = {
        "engine": replace(spec.engine, **taken["engine"]),
        "generation": replace(spec.generation, **taken["generation"]),
    }
    return spec.model_copy(update=update), told


def _changed(group: str, values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != _DEFAULTS[group][name]}
