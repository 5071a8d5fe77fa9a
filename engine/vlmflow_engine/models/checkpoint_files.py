"""Which files hold a checkpoint's weights: one, or shards that an index names."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.pickle_file import PickleFile
from vlmflow_engine.models.tensor_file import SafetensorsFile, TensorFile

# In the order in which transformers looks; pickles only where there is nothing else.
_FORMATS: Sequence[tuple[str, Callable[[Path], TensorFile]]] = (
    ("model.safetensors", SafetensorsFile),
    ("pytorch_model.bin", PickleFile),
)


def find_files(folder: Path) -> tuple[Path, list[TensorFile]]:
    """Open the files that hold a checkpoint's weights.

    Returns with them the file that says what there is: the index, or the only one. Other weights in
    the folder (consolidated.safetensors, training_args.bin, adapters) are not looked at. Raises
    ModelError.
    """
    for name, file_of in _FORMATS:
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file():
            return single, [file_of(single)]
        if index.is_file():
            return index, _open_shards(index, file_of)
    raise ModelError(
        f"{folder}: there are no weights here: neither model.safetensors, nor "
        "model.safetensors.index.json with its files, nor the same of pytorch_model.bin"
    )


def _open_shards(index: Path, file_of: Callable[[Path], TensorFile]) -> list[TensorFile]:
    shards: dict[str, list[str]] = {}  # file -> the tensors that it should hold
    try:
        for tensor, name in json.loads(index.read_bytes())["weight_map"].items():
            if Path(name).name != name:  # what lies elsewhere is of another checkpoint
                raise ValueError(f"{name!r} is not the name of a file beside it")
            shards.setdefault(name, []).append(tensor)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: not an index of a checkpoint's files: {error!r}") from error
    missing = [name for name in sorted(shards) if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{index.parent}: {missing[0]} is missing, one of {len(shards)} files that "
            f"{index.name} names; copy or download it again"
        )
    files = []
    for name, tensors in sorted(shards.items()):
        file = file_of(index.parent / name)
        absent = next((tensor for tensor in tensors if tensor not in file.tensors), None)
        if absent is not None:
            raise ModelError(
                f"{file.path}: tensor {absent!r} is not here, though {index.name} says so; are "
                "both of the same checkpoint?"
            )
        files.append(file)
    if not files:
        raise ModelError(f"{index}: not an index of a checkpoint's files: it names none")
    return files
