"""The engine's own media fetcher: http(s), files and data URLs to bytes, within limits.

    http(s)   from public addresses only (`guard.py`), with limits on time and bytes (`http.py`)
    file      regular files only, below one folder if that is asked for
    data      base64

Nothing else is fetched, and a URL's query or user name is never part of a message.
"""

import base64
import errno
import math
import os
import stat
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from vlmflow_engine.checks import check_at_least
from vlmflow_engine.errors import ConfigError, ImageTooLargeError, MediaFetchError
from vlmflow_engine.vl.guard import is_global_address, resolve
from vlmflow_engine.vl.http import HttpPolicy, fetch_http, system_tls
from vlmflow_engine.vl.url import normalise_host

MAX_IMAGE_BYTES = 256 << 20
DEFAULT_TIMEOUT_SECONDS = 10.0
# Seconds a fetch may take in all; the first that is set counts.
TIMEOUT_VARIABLES = ("VLMFLOW_IMAGE_FETCH_TIMEOUT", "LMDEPLOY_IMAGE_FETCH_TIMEOUT")


class MediaFetcher:
    """Gets an image's bytes from a path, URL, bytes or PIL image, within limits.

        fetch = MediaFetcher(allowed_media_domains=["images.example.org"], timeout=5)
        image = load_image("https://images.example.org/a.png", fetch=fetch)

    http(s) reaches public addresses only, at every redirect anew. It holds no state: any thread
    may use it.
    """

    def __init__(
        self,
        *,
        allowed_media_domains: Collection[str] | None = None,
        allowed_local_media_path: str | os.PathLike[str] | None = None,
        max_image_bytes: int = MAX_IMAGE_BYTES,
        timeout: float | None = None,
        is_allowed_address: Callable[[str], bool] = is_global_address,
    ) -> None:
        """Set the limits. Raises ConfigError.

        allowed_media_domains     hosts that http(s) may fetch from, whole names; they must be
                                  public all the same. None: any public host; empty: none
        allowed_local_media_path  files are read below this folder only, links resolved.
                                  None: anywhere
        max_image_bytes           of a file, a data URL or an http(s) answer
        timeout                   seconds for all of a fetch; None: the environment's
                                  VLMFLOW_IMAGE_FETCH_TIMEOUT or LMDEPLOY_IMAGE_FETCH_TIMEOUT, or 10
        is_allowed_address        the guard itself; replaced by tests of this package alone
        """
        check_at_least("max_image_bytes", max_image_bytes, 1)
        self.max_image_bytes = max_image_bytes
        self._folder = _allowed_folder(allowed_local_media_path)
        self._policy = HttpPolicy(
            allowed_hosts=_allowed_hosts(allowed_media_domains),
            is_allowed_address=is_allowed_address,
            resolver=resolve,
            tls=system_tls,
            timeout=(
                read_timeout(TIMEOUT_VARIABLES, DEFAULT_TIMEOUT_SECONDS)
                if timeout is None
                else _check_timeout("timeout", timeout)
            ),
            max_bytes=max_image_bytes,
        )

    @property
    def timeout(self) -> float:
        """Seconds that one fetch over http(s) may take."""
        return self._policy.timeout

    def __call__(self, source: Any) -> bytes | Image.Image:
        """Return an image's bytes, undecoded, or the PIL image itself.

        Raises MediaFetchError, ImageTooLargeError (more bytes than allowed) or ImageTruncatedError
        (a connection that ends early).
        """
        if isinstance(source, Image.Image):
            return source
        if isinstance(source, bytes | bytearray | memoryview):
            return bytes(source)
        if isinstance(source, os.PathLike):
            return self._read(Path(source))
        if not isinstance(source, str):
            raise MediaFetchError(
                f"an image is a path, a URL, bytes or a PIL image, got {type(source).__name__}"
            )
        if not source.strip():
            raise MediaFetchError("an image's path or URL is empty")
        source = source.strip() if "://" in source[:64] else source
        scheme = source.split(":", 1)[0].lower() if ":" in source[:16] else ""
        if scheme == "data":
            return self._decode_data_url(source)
        if scheme == "file":
            return self._read(_file_url_path(source))
        if scheme in ("http", "https") and source[len(scheme) :].startswith("://"):
            return fetch_http(source, self._policy)
        if "://" in source[:64] or scheme in ("http", "https", "s3", "gs", "ftp"):
            raise MediaFetchError(
                f"{scheme[:20] or 'URL'}: the engine fetches http://, https://, file: and data: "
                "URLs; load others yourself and hand in the bytes, a path or a PIL image"
            )
        return self._read(Path(source))

    def _read(self, path: Path) -> bytes:
        shown = brief(str(path))
        try:
            path = path.resolve()
            if self._folder is not None and not path.is_relative_to(self._folder):
                # The same words whether the file is there or not.
                raise MediaFetchError(
                    f"{shown} is not below allowed_local_media_path={str(self._folder)!r}"
                )
            # Before it is opened, which some devices take as a command; and after, as it may have
            # been exchanged. A pipe would wait for its writer; a link put there is not followed.
            self._check_file(shown, path.stat())
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
            with open(descriptor, "rb") as file:
                self._check_file(shown, os.fstat(descriptor))
                data = file.read(self.max_image_bytes + 1)
        except (OSError, ValueError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise MediaFetchError(f"cannot read {shown}: {reason[:200]}") from error
        self._check_size(shown, len(data))  # it may have grown, or be one that has no size
        return data

    def _decode_data_url(self, url: str) -> bytes:
        head, comma, body = url.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise MediaFetchError(f"not a data URL of base64: {head[:40]!r}")
        self._check_size(f"data URL {brief(head)}", len(body) // 4 * 3 - body.count("=", -2))
        try:
            return base64.b64decode(body, validate=True)
        except ValueError as error:
            raise MediaFetchError(
                f"data URL {brief(head)} holds no valid base64: {error}"
            ) from error

    def _check_file(self, shown: str, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise MediaFetchError(f"{shown} is a device or a pipe, not a file")
        self._check_size(shown, status.st_size)

    def _check_size(self, shown: str, num_bytes: int) -> None:
        if num_bytes > self.max_image_bytes:
            raise ImageTooLargeError(
                f"{shown} has {num_bytes:,} bytes, allowed {self.max_image_bytes:,}"
            )


def fetch_image(source: Any) -> bytes | Image.Image:
    """Return an image's bytes as a MediaFetcher with the default limits does, raising the same."""
    return MediaFetcher()(source)


def read_timeout(names: Sequence[str], default: float) -> float:
    """Seconds that the environment allows a fetch: of the first name set. Raises ConfigError."""
    for name in names:
        if value := os.environ.get(name):
            return _check_timeout(name, value)
    return default


def brief(text: str) -> str:
    """Quote a text, shortened, for a message."""
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}..."


def _file_url_path(source: str) -> Path:
    try:
        url = urlsplit(source)
    except ValueError:
        raise MediaFetchError("a file: URL cannot be read: its host is malformed") from None
    if url.netloc not in ("", "localhost"):
        raise MediaFetchError("a file: URL names another host; file:///path is read")
    return Path(unquote(url.path))


def _allowed_folder(path: str | os.PathLike[str] | None) -> Path | None:
    if path is None:
        return None
    folder = Path(path).resolve()
    if not folder.is_dir():
        raise ConfigError(f"allowed_local_media_path must be a folder, got {str(path)!r}")
    return folder


def _allowed_hosts(domains: Collection[str] | None) -> frozenset[str] | None:
    if domains is None:
        return None
    if (
        isinstance(domains, str)
        or not isinstance(domains, Collection)
        or not all(isinstance(domain, str) for domain in domains)
    ):
        raise ConfigError(f"allowed_media_domains must be a list of host names, got {domains!r}")
    try:
        return frozenset(normalise_host(domain.strip().lower()) for domain in domains)
    except MediaFetchError as error:
        raise ConfigError(
            f"allowed_media_domains holds host names without scheme, port or path: {error}"
        ) from None


def _check_timeout(name: str, value: object) -> float:
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigError(f"{name} must be a number of seconds above 0, got {value!r}")
    return seconds
