"""A web server for each test, and a picture it may serve."""

from collections.abc import Iterator

import pytest

from tests.engine.inputs.pictures import encode, noise
from tests.engine.vl.web import Web, web

PICTURE = noise(40, 30)


@pytest.fixture
def server() -> Iterator[Web]:
    """A server on loopback with a picture at /a.png."""
    from tests.engine.vl.web import answer

    with web() as server:
        server.routes["/a.png"] = answer(PNG)
        yield server


PNG = encode(PICTURE, "PNG")
