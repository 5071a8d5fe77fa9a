"""A model that does more with an image than we would do is found out before it answers."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.tiny_generic import save_tiny_generic
from vlmflow_engine.errors import ModelError
from vlmflow_engine.models.generic.handover import check_handover
from vlmflow_engine.models.generic.model import GenericModel
from vlmflow_engine.models.registry import image_format, load_model, read_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_generic("idefics3", tmp_path_factory.mktemp("idefics3"))


@pytest.fixture
def loaded(folder):
    """transformers' model, and ours around it."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, GenericModel(model)


def check(folder, loaded):
    form = image_format(read_config(folder))
    check_handover(*loaded, folder, form.parameters["placeholder_id"])


def test_a_model_that_puts_features_over_placeholders_passes(folder, loaded):
    check(folder, loaded)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"deepstack_visual_embeds": [torch.zeros(1)]}, "'deepstack_visual_embeds' beside"),
        ({"attention_mask": torch.zeros(1, 1, 4, 4)}, "a mask of its own"),
        ({"attention_mask": {"full_attention": None}}, "a mask of its own"),
        ({"position_ids": torch.zeros(3, 1, 9)}, "positions that are neither"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_else_a_decoder_is_given_is_named(folder, loaded, arguments, reason):
    decoder = loaded[0].model.text_model
    plain = type(decoder).__call__

    def with_more(self, *positional, **given):
        return plain(self, *positional, **given | arguments)

    decoder.__class__ = type("Richer", (type(decoder),), {"__call__": with_more})
    with pytest.raises(ModelError, match=reason):
        check(folder, loaded)


def test_features_that_are_changed_on_their_way_are_seen(folder, loaded):
    backbone = loaded[0].model
    merge = backbone.inputs_merger
    backbone.inputs_merger = lambda **given: merge(**given) * 1.1
    with pytest.raises(ModelError, match="does more with an image"):
        check(folder, loaded)


def test_loading_runs_the_check(folder, monkeypatch):
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Model

    merge = Idefics3Model.inputs_merger
    monkeypatch.setattr(
        Idefics3Model, "inputs_merger", lambda self, **given: merge(self, **given) + 1.0
    )
    with pytest.raises(ModelError, match="cannot run through transformers' own code: it does more"):
        load_model(folder, read_config(folder), dtype=torch.float32, device=torch.device("cpu"))


def test_a_checkpoint_that_lacks_a_tensor_is_one_sentence(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    changed = dict(tensors)
    del changed["model.connector.modality_projection.proj.weight"]
    save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
    config = read_config(tmp_path)
    with pytest.raises(ModelError, match="no tensor for 'model.connector.modality_projection.proj"):
        load_model(tmp_path, config, dtype=torch.float32, device=torch.device("cpu"))
    save_file(
        tensors | {"model.text_model.norm.weight": torch.ones(8)},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ModelError, match=r"shape \[8\], but config.json asks for \[64\]"):
        load_model(tmp_path, config, dtype=torch.float32, device=torch.device("cpu"))
