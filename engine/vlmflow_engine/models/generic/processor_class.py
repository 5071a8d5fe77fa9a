"""A checkpoint's processor of transformers, for images alone.

transformers itself loads all parts of a processor or none, and some parts want torchvision: those
for videos, and the processor of Pixtral for a function that is there for Pillow too. Only classes
inside transformers are ever looked at.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

from vlmflow_engine.errors import ModelError
from vlmflow_engine.json_file import read_object

_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def load_processor(folder: Path) -> Any:
    """Load image processor and tokenizer, and join them; whatever else there is, is None.

    Raises ModelError, or what transformers raises.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    kind = _find_class(folder)
    settings, _ = kind.get_processor_dict(folder, local_files_only=True)
    parts = {
        # Pillow's, whatever else is installed: torchvision resizes a little differently.
        "image_processor": AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        ),
        "tokenizer": AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        ),
    }
    # transformers checks that each part is of some class, which None is not.
    lenient: Any = type(
        kind.__name__, (kind,), {"check_argument_for_proper_class": lambda *_arguments: None}
    )
    return lenient.from_args_and_dict([parts.get(name) for name in kind.get_attributes()], settings)


def _find_class(folder: Path) -> Any:
    from transformers.models.auto.configuration_auto import model_type_to_module_name
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
    from transformers.utils import is_torchvision_available

    name = _class_name(folder) or PROCESSOR_MAPPING_NAMES.get(
        read_object(folder / "config.json").get("model_type", "")
    )
    owners = [kind for kind, known in PROCESSOR_MAPPING_NAMES.items() if known == name]
    if not owners:
        raise ModelError(f"{folder}: transformers has no processor {name!r}")
    if not is_torchvision_available():
        _stand_in("pixtral")
    for owner in owners:
        module = model_type_to_module_name(owner)
        try:
            found = importlib.import_module(f"transformers.models.{module}.processing_{module}")
            return getattr(found, str(name))
        except (ModuleNotFoundError, AttributeError):
            continue  # another model's processor, under that model's name
    raise ModelError(f"{folder}: transformers' {name} cannot be imported here")


def _class_name(folder: Path) -> str | None:
    for path in (folder / name for name in _FILES):
        name = read_object(path).get("processor_class") if path.is_file() else None
        if isinstance(name, str):
            return name
    return None


def _stand_in(model: str) -> None:
    """Let Pillow's module answer for the one that cannot be imported without torchvision."""
    package = f"transformers.models.{model}.image_processing"
    pillow = importlib.import_module(f"{package}_pil_{model}")
    sys.modules.setdefault(f"{package}_{model}", pillow)
