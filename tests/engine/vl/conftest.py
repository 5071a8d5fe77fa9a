"""A web server for each test, and a picture it may serve."""

from collections.abc import Iterator

import pytest

from tests.engine.inputs.pictures import encode, noise
from tests.engine.vl.web import Web, answer, web

PICTURE = noise(40, 30)
PNG = encode(PICTURE, "PNG")


@pytest.fixture
def server() -> Iterator[Web]:
    """A server on loopback with a picture at /a.png."""
    with web() as server:
        server.routes["/a.png"] = answer(PNG)
        yield server
