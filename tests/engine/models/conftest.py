"""A tiny checkpoint, made once for all tests of the folder."""

from pathlib import Path

import pytest

from tests.tiny_llava import save_tiny_llava


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint; tests read it and never write there."""
    return save_tiny_llava(tmp_path_factory.mktemp("tiny_llava"))
