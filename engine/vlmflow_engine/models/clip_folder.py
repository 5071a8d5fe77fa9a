"""The CLIP tower that an original LLaVA names and does not describe: its config, its weights.

A LLaVA-1.6 brings the tower's weights, but not its config; a LLaVA-1.5 brings neither. The config
is that of the tower's own folder, else that of a well-known tower, else what the shapes of the
weights say.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmflow_engine.errors import ModelError
from vlmflow_engine.json_file import read_object
from vlmflow_engine.models.checkpoint_files import find_files

Shapes = Mapping[str, tuple[int, ...]]

_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
}
# By the hub's name; config.json of these repositories, so far as the tower goes.
_KNOWN = {
    "openai/clip-vit-large-patch14": _LARGE | {"image_size": 224},
    "openai/clip-vit-large-patch14-336": _LARGE | {"image_size": 336},
}
_HEAD_DIM = 64  # of every CLIP that OpenAI has trained


def find_tower(folder: Path, name: str) -> Path | None:
    """The tower's own folder: beside the checkpoint's files, or a path; None if there is none."""
    for place in (folder / name, Path(name).expanduser()):
        if (place / "config.json").is_file():
            return place
    return None


def tower_config(folder: Path, name: str) -> dict[str, Any]:
    """The fields of transformers' CLIPVisionConfig. Raises ModelError.

    folder  of the LLaVA
    name    its mm_vision_tower
    """
    own = find_tower(folder, name)
    if own is not None:
        content = read_object(own / "config.json")
        return dict(content.get("vision_config", content)) | {"model_type": "clip_vision_model"}
    if name in _KNOWN:
        return _KNOWN[name] | {"model_type": "clip_vision_model"}
    _, files = find_files(folder)
    shapes = {key: stored.shape for file in files for key, stored in file.tensors.items()}
    return _config_of(shapes, folder, name)


def missing_tower(folder: Path, name: str) -> ModelError:
    """Say where the weights of a tower that a checkpoint lacks are looked for."""
    return ModelError(
        f"{folder}: the weights of its vision tower {name!r} are not in this checkpoint, and "
        f"{folder / name} is no folder with them; download that model there, or to {name} in the "
        "working folder"
    )


def _config_of(shapes: Shapes, folder: Path, name: str) -> dict[str, Any]:
    """Read a tower's config off the shapes of its tensors."""
    part = "vision_model.embeddings."
    prefix = next((key.split(part)[0] for key in shapes if part in key), None)
    if prefix is None:
        raise ModelError(
            f"{folder}: nothing tells the config of its vision tower {name!r}: it is not one of "
            f"{', '.join(_KNOWN)}, its weights are not in this checkpoint, and {folder / name} is "
            "no folder with a config.json"
        )
    try:
        width, channels, patch, _ = shapes[f"{prefix}{part}patch_embedding.weight"]
        positions, _ = shapes[f"{prefix}{part}position_embedding.weight"]
        inner, _ = shapes[f"{prefix}vision_model.encoder.layers.0.mlp.fc1.weight"]
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"{folder}: the tensors of its vision tower {name!r} are not CLIP's: {error}"
        ) from error
    layers = {
        key.split("encoder.layers.")[1].split(".")[0]
        for key in shapes
        if key.startswith(f"{prefix}vision_model.encoder.layers.")
    }
    return {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": max(1, width // _HEAD_DIM),
        "num_hidden_layers": len(layers),
        "num_channels": channels,
        "patch_size": patch,
        "image_size": patch * math.isqrt(positions - 1),
    }
