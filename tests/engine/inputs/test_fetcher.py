"""Fetchers by name: the same thing here and in a worker."""

import io
from typing import Any

import pytest
from PIL import Image

from tests.engine.inputs.pictures import encode, noise
from vlmflow_engine.errors import MediaFetchError
from vlmflow_engine.inputs.fetcher import NamedFetcher, fetch_sent


class Repeater:
    """A class of fetchers."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self, source: bytes) -> bytes:
        return source * self.times


def repeat(source: bytes, times: int) -> bytes:
    return source * times


@pytest.mark.parametrize("attribute", ["Repeater", "repeat"])
def test_class_and_function_are_given_the_options(attribute: str) -> None:
    fetch = NamedFetcher(f"{__name__}:{attribute}", times=3)
    assert fetch(b"ab") == b"ababab"
    again = NamedFetcher(fetch.name, **fetch.options)
    assert again(b"ab") == b"ababab"


def test_name_that_leads_nowhere_is_told_at_once() -> None:
    with pytest.raises(AttributeError, match="nobody"):
        NamedFetcher("vlmflow_engine.inputs.fetcher:nobody")
    with pytest.raises(ImportError, match="no_such_module"):
        NamedFetcher("no_such_module:fetch")


@pytest.mark.parametrize(
    "source",
    ["/etc/hostname", "file:///etc/hostname", "data:image/png;base64,AAAA", "http://a/b.png", None]
    + [Image.open(io.BytesIO(encode(noise(3, 3), "PNG")))],
)
def test_only_bytes_that_came_along_are_taken_from_the_wire(source: Any) -> None:
    with pytest.raises(MediaFetchError, match="sent along"):
        fetch_sent(source)
    assert fetch_sent(b"bytes") == b"bytes"
