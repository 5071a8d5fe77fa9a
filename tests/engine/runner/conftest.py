"""A tiny model, made and loaded once for all tests of the folder."""

from pathlib import Path

import pytest

from tests.tiny_llava import load_tiny_llava, save_tiny_llava
from vlmflow_engine.models.families.llava import LlavaModel


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint; tests read it and never write there."""
    return save_tiny_llava(tmp_path_factory.mktemp("tiny_llava"))


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> LlavaModel:
    """The model in that folder, in float32."""
    return load_tiny_llava(tiny_folder)
