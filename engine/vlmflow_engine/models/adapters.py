"""LoRA adapters: folders in PEFT's format onto the decoder's linear layers."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from vlmflow_engine.errors import ModelError
from vlmflow_engine.layers.linear import Linear
from vlmflow_engine.layers.lora import LoraPart, LoraWeights
from vlmflow_engine.models.adapter_config import AdapterConfig, parse_adapter_config
from vlmflow_engine.models.weights import Renames, rename

_log = logging.getLogger(__name__)

_PREFIX = "base_model.model."
_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
_TEXT = "text."
# An adapter may have been trained on the language model alone.
_TEXT_ALONE = (r"(model\.)?(?=(layers|embed_tokens)\.)", _TEXT)
_ELSEWHERE = {
    "vision.": "the vision tower",
    "projector.": "the projector",
    "lm_head.": "the output head",
    "text.embed_tokens.": "the embeddings",
}


@dataclass(frozen=True, slots=True)
class _Pair:
    """A layer's two tensors, as they are stored."""

    module: str  # the layer's name in the file, which adapter_config.json speaks of
    tensors: dict[str, Tensor] = field(default_factory=dict)  # A and B


def load_adapters(
    folders: Mapping[str, str],
    linears: Sequence[Linear],
    renames: Renames,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, bytes]:
    """Put adapters (name -> folder) on the layers that they change; return their digests by name.

    A digest names an adapter's content: equal ones make equal answers. Raises ModelError.
    """
    if folders and not linears:
        raise ModelError(
            f"adapters={sorted(folders)}: a model that runs through transformers' own code takes "
            "no LoRA adapters; merge them into its weights"
        )
    digests: dict[str, bytes] = {}
    for name, folder in folders.items():
        config_path = Path(folder) / "adapter_config.json"
        weights_path = Path(folder) / "adapter_model.safetensors"
        raw_config, raw_weights = _read(config_path), _read(weights_path)
        digest = sha256(sha256(raw_config).digest())
        digest.update(raw_weights)
        digests[name] = digest.digest()
        config = parse_adapter_config(config_path, raw_config)
        pairs = _read_pairs(weights_path, raw_weights, (*renames, _TEXT_ALONE))
        added = _place(pairs, linears, config, weights_path, dtype, device)
        for linear, weights in added:
            linear.adapters[name] = weights
        num_bytes = sum(weights.num_bytes for _, weights in added)
        _log.info("adapter %r: %d layers, %s bytes", name, len(pairs), f"{num_bytes:,}")
    return digests


def _read(path: Path) -> bytes:
    if not path.is_file():
        reason = "an adapter is a folder in PEFT's format"
        if path.with_suffix(".bin").is_file():
            reason = "weights are read from safetensors files only; save the adapter anew with PEFT"
        raise ModelError(f"{path.parent}: no {path.name} here; {reason}")
    return path.read_bytes()


def _read_pairs(path: Path, raw: bytes, renames: Renames) -> dict[str, _Pair]:
    """Read the tensors of each layer, under the engine's own name of the layer."""
    try:
        tensors = safetensors.torch.load(raw)
    except Exception as error:  # safetensors raises its own class and others
        raise ModelError(f"{path}: cannot be read as safetensors: {error}") from error
    pairs: dict[str, _Pair] = {}
    for stored_name, tensor in tensors.items():
        name = stored_name.removeprefix(_PREFIX)
        for start, what in _ELSEWHERE.items():
            if rename(name, renames).startswith(start):
                raise ModelError(
                    f"{path}: tensor {stored_name!r} is of {what}, but only the linear layers of "
                    "the language model's own layers take an adapter; name them in target_modules, "
                    r"for instance r'.*language_model.*(q|k|v|o|gate|up|down)_proj'"
                )
        match = _NAME.fullmatch(name)
        if match is None or name == stored_name:
            raise ModelError(
                f"{path}: tensor {stored_name!r} is not one of plain LoRA, whose names are "
                f"'{_PREFIX}*.lora_A.weight' and '{_PREFIX}*.lora_B.weight'"
            )
        module = match["module"]
        pair = pairs.setdefault(rename(module, renames), _Pair(module))
        if pair.module != module:
            raise ModelError(
                f"{path}: {module!r} and {pair.module!r} are the same layer; which one counts?"
            )
        pair.tensors[match["half"]] = tensor
    if not pairs:
        raise ModelError(f"{path}: there is no tensor in it")
    return pairs


def _place(
    pairs: Mapping[str, _Pair],
    linears: Sequence[Linear],
    config: AdapterConfig,
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
) -> list[tuple[Linear, LoraWeights]]:
    """Give each linear layer the weights of its parts; every pair must find its place."""
    known = {name for linear in linears for name, _ in linear.parts}
    for name, pair in pairs.items():
        if name not in known:
            raise ModelError(
                f"{path}: the model has no linear layer {pair.module!r}; is the adapter of this "
                "model?"
            )
    name, pair = next(iter(pairs.items()))
    prefix = pair.module.removesuffix(name.removeprefix(_TEXT))
    added = []
    for linear in linears:
        parts: list[LoraPart | None] = []
        for name, out_features in linear.parts:
            found, module = pairs.get(name), prefix + name.removeprefix(_TEXT)
            if config.is_target(module) != (found is not None):
                raise ModelError(
                    f"{path}: {module!r} has {'no' if found is None else 'a'} tensor here, but "
                    "target_modules and layers_to_transform of adapter_config.json say otherwise"
                )
            shape = (out_features, linear.weight.shape[1])
            parts.append(None if found is None else _part(found, config, shape, path))
        if any(parts):
            sizes = [size for _, size in linear.parts]
            weights = LoraWeights.merged(parts, sizes, dtype=dtype, device=device)
            added.append((linear, weights))
    return added


def _part(pair: _Pair, config: AdapterConfig, shape: tuple[int, int], path: Path) -> LoraPart:
    """Check a layer's tensors. `shape` is [out_features, in_features]."""
    rank = config.rank_of(pair.module)
    for half, expected in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
        if half not in pair.tensors:
            raise ModelError(f"{path}: {pair.module!r} has no lora_{half}.weight; is it complete?")
        found = tuple(pair.tensors[half].shape)
        if found != expected:
            raise ModelError(
                f"{path}: lora_{half}.weight of {pair.module!r} has shape {list(found)}, but the "
                f"model and adapter_config.json ask for {list(expected)}; is the adapter of this "
                "model?"
            )
    return LoraPart(pair.tensors["A"], pair.tensors["B"], config.scaling_of(pair.module))
