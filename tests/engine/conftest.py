"""A random LLaVA that all engine tests share."""

from pathlib import Path

import pytest

from tests.tiny_llava import save_tiny_llava


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint's folder; not to be changed."""
    return save_tiny_llava(tmp_path_factory.mktemp("tiny_llava"))
