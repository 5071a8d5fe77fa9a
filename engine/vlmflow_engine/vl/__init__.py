"""Images and videos from wherever a caller has them; `pipeline` too, as old code expects."""

from typing import TYPE_CHECKING, Any

from vlmflow_engine.vl.fetch import MediaFetcher, fetch_image
from vlmflow_engine.vl.image import encode_image_base64, load_image, load_image_from_url
from vlmflow_engine.vl.video import load_video

if TYPE_CHECKING:
    from vlmflow_engine.api import pipeline

__all__ = [
    "MediaFetcher",
    "encode_image_base64",
    "fetch_image",
    "load_image",
    "load_image_from_url",
    "load_video",
    "pipeline",
]


def __getattr__(name: str) -> Any:
    # It stands above this package, and needs torch as soon as it is called.
    if name == "pipeline":
        from vlmflow_engine.api import pipeline

        return pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
