"""The demo's checkpoint, logged to a store of the test's own; and a question that it can answer."""

import io
import random
from pathlib import Path
from typing import NamedTuple

import pytest

from examples.shapes.scenes import ask, draw_scene
from vlmflow.packaging.log_model import LoggedPackage, log_model
from vlmflow.packaging.request import PackageRequest

# MLflow's own: pools of connections that the garbage collector closes, how it uses SQLAlchemy,
# and a word to itself about its own types.
MLFLOW_NOISE = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),
]

CHECKPOINT = Path(__file__).parents[2] / "examples/shapes/checkpoint"


class Asked(NamedTuple):
    prompt: str
    image: bytes  # a PNG file
    answer: str


@pytest.fixture(scope="session")
def asked() -> Asked:
    rng = random.Random(3)
    scene, buffer = draw_scene(rng), io.BytesIO()
    scene.draw(192).save(buffer, "PNG")
    question = ask(rng, scene, "describe")
    return Asked(question.text, buffer.getvalue(), question.answer)


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory) -> str:
    """A store that all tests here share: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="session")
def log(mlflow_uri):
    """Logs the demo's checkpoint, with values of a PackageRequest."""

    def log(**values) -> LoggedPackage:
        request = {"model": str(CHECKPOINT), "tracking": {"uri": mlflow_uri}} | values
        parsed = PackageRequest.parse(request)
        return log_model(parsed, say=print, is_stopped=lambda: False)

    return log
