"""From a URI to the store that holds it."""

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from vlmflow.job.errors import SpecError
from vlmflow.job.store.base import Store
from vlmflow.job.store.credentials import S3Credentials
from vlmflow.job.store.folder import FolderStore

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class StoreOpener:
    """Opens s3:// URIs and paths. One S3 client serves them all."""

    def __init__(
        self,
        endpoint_url: str | None = None,
        *,
        max_connections: int = 32,
        credentials: S3Credentials | None = None,
    ) -> None:
        """Without `credentials` they come from boto3's own chain."""
        self.endpoint_url = endpoint_url
        self._credentials = credentials
        self._max_connections = max_connections
        self._client: S3Client | None = None
        self._lock = threading.Lock()

    def open(self, uri: str) -> Store:
        """Open a bucket, a prefix of one, or a folder as a store."""
        if is_s3(uri):
            # boto3 takes half a second to import; a job between folders does without.
            from vlmflow.job.store.s3 import S3Store

            bucket, prefix = split_s3(uri)
            return S3Store(self._s3_client(), bucket, prefix)
        return FolderStore(_path(uri))

    def locate(self, uri: str) -> tuple[Store, str]:
        """Return the store of an object, and its key there."""
        if is_s3(uri):
            bucket, key = split_s3(uri)
            if not key:
                raise SpecError(f"{uri!r} names a bucket, not an object")
            return self.open(f"s3://{bucket}"), key
        path = _path(uri).absolute()
        return FolderStore(path.parent), path.name

    def _s3_client(self) -> "S3Client":
        from vlmflow.job.store.s3 import make_client

        with self._lock:
            if self._client is None:
                self._client = make_client(
                    self.endpoint_url,
                    max_connections=self._max_connections,
                    credentials=self._credentials,
                )
            return self._client


def is_s3(uri: str) -> bool:
    return scheme(uri) == "s3"


def scheme(uri: str) -> str:
    """The URI's scheme in lower case; empty for a path."""
    # Backslashes as browsers take them: what looks like a URL to somebody is treated as one.
    head, colon, rest = uri.lstrip().replace("\\", "/").partition(":")
    return head.lower() if colon and (rest.startswith("//") or head.lower() == "data") else ""


def without_query(uri: str) -> str:
    """A URI as it may be shown: a query may be a signature, a data URL holds the image itself."""
    kind = scheme(uri)
    if kind == "data":
        return uri.partition(",")[0][:80]
    if not kind or kind in ("s3", "file"):
        return uri
    # Not urlsplit, which raises: whatever may be a password or a signature goes.
    rest = uri.strip().replace("\\", "/").partition("://")[2]
    host, slash, path = re.split("[?#]", rest)[0].partition("/")
    return f"{kind}://{host.rpartition('@')[2]}{slash}{path}"


def without_secrets_of(uri: str, text: str) -> str:
    """A text without the user, password, query and fragment of a URI that it may quote."""
    rest = uri.partition("://")[2]
    place, *behind = re.split("[?#]", rest)
    user, at, _ = place.partition("/")[0].rpartition("@")
    for secret in sorted({*(user.split(":") if at else ()), *behind}, key=len, reverse=True):
        if secret:
            text = text.replace(secret, "***")
    return text


def join(base: str, name: str) -> str:
    """Take a relative name as relative to the folder of `base`, a manifest's URI."""
    if scheme(name) or name.startswith("/"):
        return name
    if scheme(base) == "file":
        name = quote(name)
    return f"{base.rpartition('/')[0]}/{name}" if "/" in base else name


def split_s3(uri: str) -> tuple[str, str]:
    # Not urlsplit: a key may hold '?' and '#'.
    bucket, _, key = uri.lstrip().partition("://")[2].partition("/")
    if not bucket:
        raise SpecError(f"{uri!r} names no bucket; write s3://bucket/key")
    return bucket, key


def _path(uri: str) -> Path:
    kind = scheme(uri)
    if kind and kind != "file":
        raise SpecError(
            f"{without_query(uri)!r}: scheme {kind!r} is not supported; use s3:// or a path"
        )
    try:
        return Path(unquote(urlsplit(uri).path)) if kind else Path(uri).expanduser()
    except (ValueError, RuntimeError) as error:
        raise SpecError(f"{uri!r} is no path: {error}") from error
