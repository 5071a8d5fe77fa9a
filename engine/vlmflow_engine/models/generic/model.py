"""A whole model of transformers: loaded by it, looked at by us, run by both."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from vlmflow_engine.errors import MediaError, ModelError
from vlmflow_engine.models.family import ImagePixels
from vlmflow_engine.models.generic.decoder import GenericDecoder
from vlmflow_engine.models.generic.processing import brief
from vlmflow_engine.models.weights import Renames


class GenericModel:
    """transformers' vision side, and its decoder over our paged KV cache."""

    renames: Renames = ()  # transformers finds the tensors itself

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises ModelError for a decoder that cannot be paged."""
        self.decoder = GenericDecoder(model)
        self._backbone = model.base_model

    def encode_images(self, images: Sequence[ImagePixels]) -> list[Tensor]:
        """Return each image's embeddings [rows, hidden_size]. Raises MediaError."""
        return [self._encode(image.values, image.arrays) for image in images]

    def _encode(self, values: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
        features = self._backbone.get_image_features
        taken = inspect.signature(features).parameters
        arguments = {name: array for name, array in arrays.items() if name in taken}
        try:
            output: Any = features(values, **arguments)
        except (ValueError, IndexError, TypeError) as error:
            raise MediaError(
                f"transformers' {type(self._backbone).__name__} refuses an image: {brief(error)}"
            ) from error
        rows = output if isinstance(output, Tensor) else getattr(output, "pooler_output", output)
        parts = [rows] if isinstance(rows, Tensor) else list(rows)
        return torch.cat([part.flatten(0, -2) for part in parts])


def build_on_meta(auto_class: Any, config: Any) -> PreTrainedModel:
    """Build a model without weights, to look at what it is made of. Raises ModelError."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto_class.from_config(config, trust_remote_code=False)
    except Exception as error:  # of many classes
        raise ModelError(f"transformers cannot build it: {brief(error)}") from error
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave it to us to say what is wrong with a checkpoint: transformers draws a table of it."""
    verbosity = logging.get_verbosity()
    has_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def load_pretrained(
    auto_class: Any, folder: Path, config: Any, *, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """Let transformers read the weights, from safetensors files only. Raises ModelError."""
    try:
        with _quiet():
            model, report = auto_class.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # to say it in our own words
            )
    except Exception as error:  # of many classes, and over many lines
        raise ModelError(f"{folder}: transformers cannot load it: {brief(error)}") from error
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        raise ModelError(
            f"{folder}: tensor {name!r} has shape {list(stored)}, but config.json asks for "
            f"{list(wanted)}"
        )
    for what, names in (
        ("no tensor for", report["missing_keys"]),
        ("no place for the checkpoint's", report["unexpected_keys"]),
    ):
        if names:
            raise ModelError(
                f"{folder}: {len(names)} tensors do not go with config.json: there is {what} "
                f"{min(names)!r}; is the checkpoint complete, and of this architecture?"
            )
    loaded: PreTrainedModel = model.eval().to(device)
    return loaded
