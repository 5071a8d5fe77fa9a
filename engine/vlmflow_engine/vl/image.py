"""One image from wherever a caller has it: load it, or carry it in a text."""

import base64
import io
from typing import Any

from PIL import Image

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import MediaError, MediaFetchError
from vlmflow_engine.inputs.image_decode import decode_image, to_rgb
from vlmflow_engine.vl.fetch import MediaFetcher


def load_image(url: Any, *, fetch: MediaFetcher | None = None) -> Image.Image:
    """Load an RGB image from wherever a caller has it.

    url    an http(s), file: or data: URL, a path, bytes of a file, or a PIL image
    fetch  another MediaFetcher than the default one

    It comes upright (EXIF), transparency lies on white, 16 bits a colour become 8. Raises
    MediaFetchError, ImageCorruptError, ImageTruncatedError, ImageFormatError or ImageTooLargeError
    (pixels: PytorchEngineConfig's default); a picture that cannot be had is never replaced.
    """
    fetched = (fetch or MediaFetcher())(url)
    if isinstance(fetched, Image.Image):
        return to_rgb(fetched)
    return decode_image(fetched, max_pixels=PytorchEngineConfig().max_image_pixels)


def load_image_from_url(url: str) -> Image.Image:
    """Load an RGB image from an http(s), file: or data: URL, as `load_image` does.

    Raises MediaFetchError for what is no such URL, and what `load_image` raises.
    """
    schemes = ("http://", "https://", "file:", "data:")
    if not isinstance(url, str) or not url.strip().lower().startswith(schemes):
        raise MediaFetchError(
            "a URL starts with http://, https://, file: or data:; "
            "load_image takes paths and bytes as well"
        )
    return load_image(url.strip())


def encode_image_base64(image: Any, format: str = "PNG") -> str:
    """Return an image as base64 of a file, as a model would see it: RGB and upright.

    image   whatever `load_image` takes
    format  a name that Pillow knows: PNG, JPEG, WEBP ...

    Raises MediaError, ValueError if Pillow writes no such format.
    """
    picture = load_image(image)
    buffer = io.BytesIO()
    try:
        picture.save(buffer, format)
    except (KeyError, ValueError):
        raise ValueError(f"format must be one that Pillow writes, got {format!r}") from None
    except OSError as error:
        raise MediaError(f"the image cannot be written as {format}") from error
    return base64.b64encode(buffer.getvalue()).decode("ascii")
