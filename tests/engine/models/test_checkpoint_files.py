"""Shards and their index: what is missing or wrong is named with its file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.engine.models.test_weights import open_checkpoint
from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.checkpoint_files import find_files

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two shards, a tensor in each."""
    for number in (1, 2):
        tensor = torch.full((3,), float(number))
        save_file({f"x{number}": tensor}, tmp_path / f"{number}.safetensors")
    write_index(tmp_path, {"x1": "1.safetensors", "x2": "2.safetensors"})
    return tmp_path


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        find_files(folder)
    return str(caught.value)


def test_shards_are_opened_by_their_index(folder):
    source, files = find_files(folder)
    assert source == folder / INDEX
    assert [list(file.tensors) for file in files] == [["x1"], ["x2"]]


def test_a_tensor_that_the_index_promises_and_its_shard_lacks_is_named(folder):
    write_index(folder, {"x1": "1.safetensors", "x2": "2.safetensors", "x3": "2.safetensors"})
    assert refusal(folder) == (
        f"{folder / '2.safetensors'}: tensor 'x3' is not here, though {INDEX} says so; are both "
        "of the same checkpoint?"
    )


def test_a_missing_shard_is_named_with_the_index(folder):
    (folder / "2.safetensors").unlink()
    assert refusal(folder) == (
        f"{folder}: 2.safetensors is missing, one of 2 files that {INDEX} names; copy or download "
        "it again"
    )


def test_a_truncated_shard_is_named(folder):
    path = folder / "2.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert refusal(folder).startswith(f"{path}: cannot be read as safetensors: it has 8 bytes of")


def test_a_tensor_that_no_shard_has_is_sought_in_the_index(folder):
    with pytest.raises(ModelError) as caught:
        open_checkpoint(folder).take("x9", 3)
    assert str(caught.value).startswith(f"{folder / INDEX}: there is no tensor for 'x9' ")


def test_a_tensor_in_a_shard_that_no_index_names_is_left_over(folder):
    save_file({"x2": torch.zeros(3), "x4": torch.zeros(3)}, folder / "2.safetensors")
    checkpoint = open_checkpoint(folder)
    checkpoint.take("x1", 3), checkpoint.take("x2", 3)
    with pytest.raises(ModelError, match=r"2\.safetensors: 1 tensors .* the first is 'x4'"):
        checkpoint.check_used()


@pytest.mark.parametrize("name", ["../1.safetensors", "/etc/passwd", "sub/1.safetensors", 7, None])
def test_a_shard_outside_the_folder_is_not_opened(name, folder):
    write_index(folder, {"x1": name})
    assert refusal(folder).startswith(f"{folder / INDEX}: not an index of a checkpoint's files: ")


def test_an_index_that_names_nothing_is_refused(folder):
    write_index(folder, {})
    assert refusal(folder).endswith("it names none")
