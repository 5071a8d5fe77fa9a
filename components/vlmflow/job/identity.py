"""What an answer depends on, as digests: the same identity is resumed, another one refused."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from vlmflow.job.errors import SpecError
from vlmflow.job.file_digests import FileDigests
from vlmflow.job.record import RESULT_SCHEMA_VERSION
from vlmflow.job.spec import JobSpec
from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.generation import GenerationConfig

# The files of a checkpoint that decide an answer. Not its README, not its licence.
_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt", ".bin")

# Nothing else of the engine's config changes what an answer is.
_ENGINE_FIELDS = (
    "adapters",
    "hf_overrides",
    "language_model_only",
    "max_image_pixels",
    "quant",
    "quant_policy",
    "session_len",
)

_DEFAULTS: dict[str, dict[str, Any]] = {
    "generation": asdict(GenerationConfig()),
    "engine": asdict(PytorchEngineConfig()),
}


def identity_parts(
    spec: JobSpec, *, manifest_digest: str, dialect: str, model_digest: str, dtype: str
) -> dict[str, Any]:
    """Name everything that an answer depends on."""
    parts: dict[str, Any] = {
        "manifest": manifest_digest,
        "dialect": dialect,
        "prompt": spec.prompt,
        "model_names": list(spec.model_names),
        "model": model_digest,
        "limit": spec.limit,
        "seed": spec.seed,
        "dtype": dtype,
        "duplicates": spec.duplicates,
        "result_schema_version": RESULT_SCHEMA_VERSION,
    }
    dumped = spec.model_dump(mode="json")
    for group, names in (("generation", tuple(dumped["generation"])), ("engine", _ENGINE_FIELDS)):
        defaults = _DEFAULTS[group]
        # Without the defaults: a new version has new options, and its jobs shall go on.
        parts |= {
            f"{group}.{name}": dumped[group][name]
            for name in names
            if dumped[group][name] != defaults[name]
        }
    if spec.engine.adapters:
        # What is in them, not where they lie.
        parts["engine.adapters"] = {
            name: adapter_digest(folder) for name, folder in sorted(spec.engine.adapters.items())
        }
    return parts


def identity_digest(parts: dict[str, Any]) -> str:
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def describe_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Say which parts differ, with both values."""
    return ", ".join(
        f"{name} was {_shown(name, theirs)} and is {_shown(name, ours)}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    )


def model_digest(folder: str) -> str:
    """sha256 over path, size and sha256 of the checkpoint's files. Raises SpecError."""
    root = Path(folder)
    if not (root / "config.json").is_file():
        raise SpecError(
            f"model {folder!r} is not a checkpoint: there is no config.json in this folder"
        )
    tower = _tower_elsewhere(root)
    own = _digest_of(root)
    return own if tower is None else sha256(f"{own}\n{_digest_of(tower)}".encode()).hexdigest()


def _tower_elsewhere(root: Path) -> Path | None:
    """The folder of the vision tower that an original LLaVA names, if it is not below `root`."""
    try:
        name = json.loads((root / "config.json").read_bytes()).get("mm_vision_tower")
    except (ValueError, AttributeError):  # the engine says what is wrong with it
        return None
    if not isinstance(name, str) or (root / name / "config.json").is_file():
        return None
    place = Path(name).expanduser()
    return place if (place / "config.json").is_file() else None


def adapter_digest(folder: str) -> str:
    """The same of an adapter's files. Raises SpecError."""
    root = Path(folder)
    if not (root / "adapter_config.json").is_file():
        raise SpecError(
            f"adapter {folder!r} is none: there is no adapter_config.json in this folder"
        )
    return _digest_of(root)


def _digest_of(root: Path) -> str:
    known = FileDigests()
    digest = sha256()
    for path in checkpoint_files(root):
        name, size = path.relative_to(root).as_posix(), path.stat().st_size
        digest.update(f"{name}\0{size}\0{known.digest(path)}\n".encode())
    known.save()
    return digest.hexdigest()


def checkpoint_files(root: Path) -> Iterator[Path]:
    """The files that decide an answer, in order."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix in _SUFFIXES and not path.name.startswith("."):
            yield path


def _shown(name: str, parts: dict[str, Any]) -> str:
    group, _, option = name.partition(".")
    return _brief(parts.get(name, _DEFAULTS.get(group, {}).get(option)))


def _brief(value: Any) -> str:
    text = json.dumps(value)
    is_digest = isinstance(value, str) and len(value) == 64
    return f"{text[:9]}…" if is_digest else text
