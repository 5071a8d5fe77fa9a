"""Images from wherever a caller has them."""

from vlmflow_engine.vl.fetch import fetch_image, load_image

__all__ = ["fetch_image", "load_image"]
