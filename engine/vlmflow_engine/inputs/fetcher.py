"""Fetchers that another process can make for itself: shipped by name, never as code."""

from importlib import import_module
from typing import Any

from PIL import Image

from vlmflow_engine.errors import MediaFetchError
from vlmflow_engine.inputs.prompts import ImageSource


class NamedFetcher:
    """A `MediaFetcher` known by where it is found, and by its options.

    name     "package.module:attribute". A class is made with the options, and its object called
             with a source; a function is called with the source and the options.
    options  plain values, which travel to a worker

    The module is imported in a preprocessing worker, so it must need no torch.
    """

    def __init__(self, name: str, **options: Any) -> None:
        self.name, self.options = name, options
        module, _, attribute = name.partition(":")
        found = getattr(import_module(module), attribute)
        if isinstance(found, type):
            self._fetch, self._options = found(**options), {}
        else:
            self._fetch, self._options = found, options

    def __call__(self, source: ImageSource) -> bytes | Image.Image:
        fetched: bytes | Image.Image = self._fetch(source, **self._options)
        return fetched


def fetch_sent(source: ImageSource) -> bytes:
    """Take the bytes that came with a prompt, and nothing that would have to be fetched."""
    if isinstance(source, bytes):
        return source
    raise MediaFetchError(
        f"only images that are sent along are taken here, got {type(source).__name__}"
    )
