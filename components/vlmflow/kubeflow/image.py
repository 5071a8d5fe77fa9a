"""The image that components run in, unless somebody names another."""

import os

from vlmflow import __version__

IMAGE_VARIABLE = "VLMFLOW_IMAGE"
DEFAULT_IMAGE = f"ghcr.io/vlmflow/vlmflow:{__version__}"


def default_image() -> str:
    """What VLMFLOW_IMAGE says where a pipeline is compiled, else the release's own."""
    return os.environ.get(IMAGE_VARIABLE) or DEFAULT_IMAGE
