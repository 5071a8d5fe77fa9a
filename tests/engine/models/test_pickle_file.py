"""Old checkpoints: tensors out of pickles, and nothing else out of them."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from tests.engine.models.test_weights import open_checkpoint
from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.checkpoint_files import find_files

FILE = "pytorch_model.bin"


class Evil:
    """Names a function in a pickle, which an unpickler without care would call."""

    def __reduce__(self):
        return (print, ("SECRET WORDS",))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        find_files(folder)
    error = caught.value
    assert error.__cause__ is None and (error.__suppress_context__ or not error.__context__)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tensors_of_a_pickle_load_and_may_be_split(tmp_path):
    tensors = {"a": torch.randn(6, 2), "b": torch.randn(4).half(), "c": torch.tensor(3.0)}
    tensors["a"] = tensors["a"].T.contiguous().T  # in another order in the file
    torch.save(tensors, tmp_path / FILE)
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.split("a", {"first": 1, "second": 2}, num_groups=2)
    assert torch.equal(checkpoint.take("first", 2, 2), tensors["a"][[0, 3]])
    assert torch.equal(checkpoint.take("second", 4, 2), tensors["a"][[1, 2, 4, 5]])
    assert torch.equal(checkpoint.take("b", 4), tensors["b"].float())
    assert checkpoint.take("c").item() == 3.0
    checkpoint.check_used()


def test_shards_of_pickles_load_by_their_index(tmp_path):
    for number in (1, 2):
        torch.save({f"x{number}": torch.full((3,), float(number))}, tmp_path / f"{number}.bin")
    index = {"weight_map": {"x1": "1.bin", "x2": "2.bin"}}
    (tmp_path / f"{FILE}.index.json").write_text(json.dumps(index))
    checkpoint = open_checkpoint(tmp_path)
    assert [checkpoint.take(f"x{n}", 3).tolist() for n in (1, 2)] == [[1.0] * 3, [2.0] * 3]


def test_a_pickle_beside_safetensors_is_not_looked_at(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / FILE).write_bytes(b"junk")
    assert find_files(tmp_path)[0] == tmp_path / "model.safetensors"


@pytest.mark.parametrize("content", [{"x": Evil()}, Evil()], ids=["inside", "whole"])
def test_code_in_a_pickle_is_neither_run_nor_shown(content, tmp_path, capsys):
    torch.save(content, tmp_path / FILE)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / FILE}: a pickle with more in it than tensors")
    captured = capsys.readouterr()
    assert "SECRET" not in message + captured.out + captured.err


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"<html>not found</html>"),
        lambda path: path.write_bytes(pickle.dumps({"x": Evil()})),
        lambda path: torch.save({"x": torch.zeros(9)}, path, _use_new_zipfile_serialization=False),
        lambda path: (torch.save({"x": torch.zeros(999)}, path), os.truncate(path, 900)),
        lambda path: torch.save([torch.zeros(9)], path),
        lambda path: torch.save({"state_dict": {"x": torch.zeros(9)}}, path),
    ],
    ids=["empty", "html", "bare", "legacy", "truncated", "list", "nested"],
)
def test_what_is_no_table_of_tensors_is_one_sentence(write, tmp_path, capsys):
    write(tmp_path / FILE)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / FILE}: ") and message.endswith("to safetensors")
    assert "SECRET" not in message + capsys.readouterr().out
