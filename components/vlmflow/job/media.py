"""Fetches the images of records. Only bytes are had here; the engine decodes them."""

import base64
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

from vlmflow.job.allowed_s3 import AllowedS3
from vlmflow.job.errors import CredentialsError, SpecError, StoreError
from vlmflow.job.media_cache import MediaCache, default_folder
from vlmflow.job.record import Failure, FetchedImage, Record
from vlmflow.job.shared_fetch import ImageBytes, SharedFetches
from vlmflow.job.spec import JobSpec, Media
from vlmflow.job.store import ObjectMissingError, StoreOpener
from vlmflow.job.store.base import ObjectForbiddenError, ObjectTooLargeError
from vlmflow.job.store.locate import is_s3, join, scheme, without_query
from vlmflow_engine.errors import ConfigError, MediaError

# A host is not asked whether its image is the same still; for so long it is taken to be.
WEB_CACHE_SECONDS = 24 * 3600.0

_DEFAULT = Media()

# What an image can do wrong; anything else ends the job.
_OF_THE_RECORD = (
    ObjectMissingError,
    ObjectTooLargeError,
    ObjectForbiddenError,
    SpecError,
    StoreError,
    MediaError,
)


class MediaFetcher:
    """Gets images from where the manifest says. Used by several threads at a time."""

    def __init__(
        self,
        opener: StoreOpener,
        manifest_uri: str,
        *,
        max_image_bytes: int,
        media: Media = _DEFAULT,
        cache: MediaCache | None = None,
        fetch_web: Callable[[str], bytes] | None = None,
    ) -> None:
        """`fetch_web` gets what http(s) URLs name, and raises MediaError; None: nothing does."""
        self._opener = opener
        self._manifest_uri = manifest_uri
        self._max_image_bytes = max_image_bytes
        self._allowed_s3 = AllowedS3(media.allowed_s3, manifest_uri)
        self._cache = cache
        # Part of a cached image's name: what another job may fetch is no matter of this one.
        self._web_hosts = " ".join(sorted(media.allowed_media_domains or ()))
        self._fetch_web = fetch_web
        self._shared = SharedFetches()

    def fetch(self, record: Record) -> list[FetchedImage] | Failure:
        """Fetch all images of a record, or say why one of them cannot be had.

        Raises CredentialsError, which is no record's fault.
        """
        images = []
        for uri in record.image_uris:
            image = self._fetch_one(uri)
            if isinstance(image, Failure):
                return image
            images.append(FetchedImage(without_query(uri), image.data, image.sha256))
        return images

    def look(self, uri: str) -> int | Failure | None:
        """The size of an image that is not fetched, or why it would not be.

        None where nothing can be said: a data URL holds its bytes, and the web is not asked.
        Raises CredentialsError.
        """
        if scheme(uri) == "data":
            return None
        where = join(self._manifest_uri, uri)
        refusal = self._refusal(where)
        if refusal is not None:
            return Failure("fetch", "image_forbidden", refusal)
        if _is_web(where):
            return None
        try:
            store, key = self._opener.locate(where)
            size = store.stat(key).num_bytes
        except _OF_THE_RECORD as error:
            return _failure(error)
        if size > self._max_image_bytes:
            reason = f"{uri} has {size:,} bytes, more than {self._max_image_bytes:,}"
            return Failure("fetch", "image_too_large", reason)
        return size

    def check_places(self, records: Iterable[Record]) -> None:
        """Raise SpecError if all their images on S3 and the web are where none may come from.

        One such image fails its record; all of them are an option that was forgotten.
        """
        reasons = [
            self._refusal(join(self._manifest_uri, uri))
            for record in records
            for uri in record.image_uris
            if scheme(uri) != "data"
        ]
        if reasons and all(reasons):
            raise SpecError(f"{reasons[0]}; so it is with all of the first {len(reasons)} images")

    def _fetch_one(self, uri: str) -> ImageBytes | Failure:
        if scheme(uri) == "data":
            return self._decode_data_url(uri)
        where = join(self._manifest_uri, uri)
        refusal = self._refusal(where)
        if refusal is not None:
            return Failure("fetch", "image_forbidden", refusal)
        try:
            if is_s3(where) or _is_web(where):
                return self._shared.get(where, self._fetch_remote)
            store, key = self._opener.locate(where)
            return _named(store.read(key, max_bytes=self._max_image_bytes))
        except _OF_THE_RECORD as error:
            return _failure(error)

    def _refusal(self, where: str) -> str | None:
        """Why nothing may be fetched from there; None if it may."""
        if _is_web(where):
            if self._fetch_web is None:
                return (
                    f"{without_query(where)}: images are not fetched over http(s); "
                    "put them on S3, or say --allow-http"
                )
            return None
        if is_s3(where):
            try:
                return self._allowed_s3.refusal(where)
            except SpecError as error:  # it names no bucket
                return str(error)
        if is_s3(self._manifest_uri):
            # Who may write a manifest to a bucket may not therefore read this machine's files.
            return f"{without_query(where)!r}: a manifest on S3 may name s3:// images only"
        return None

    def _fetch_remote(self, where: str) -> ImageBytes:
        return self._fetch_s3(where) if is_s3(where) else self._fetch_from_web(where)

    def _fetch_s3(self, where: str) -> ImageBytes:
        """One request in any case: S3 sends the bytes, or says that those in the cache are right.

        So permissions are asked for each time, and a cache shows nobody what he may not read.
        """
        store, key = self._opener.locate(where)
        name = f"s3 {self._opener.endpoint_url or ''} {where}"
        cached = self._cache.get(name) if self._cache is not None else None
        if cached is not None and len(cached.data) > self._max_image_bytes:
            cached = None
        answer = store.read_if_changed(
            key, cached.tag if cached else None, max_bytes=self._max_image_bytes
        )
        if answer is None:
            assert cached is not None
            return ImageBytes(cached.data, cached.sha256)
        data, etag = answer
        image = _named(data)
        if self._cache is not None and etag:
            self._cache.put(name, data, image.sha256, etag)
        return image

    def _fetch_from_web(self, where: str) -> ImageBytes:
        assert self._fetch_web is not None
        name = f"web {self._web_hosts} {where}"
        cached = self._cache.get(name) if self._cache is not None else None
        if (
            cached is not None
            and len(cached.data) <= self._max_image_bytes
            and 0 <= time.time() - float(cached.tag) < WEB_CACHE_SECONDS
        ):
            return ImageBytes(cached.data, cached.sha256)
        image = _named(self._fetch_web(where.strip()))
        if self._cache is not None:
            self._cache.put(name, image.data, image.sha256, str(time.time()))
        return image

    def _decode_data_url(self, uri: str) -> ImageBytes | Failure:
        head, comma, body = uri.partition(",")
        try:
            is_base64 = comma and head.endswith(";base64")
            data = base64.b64decode(body, validate=True) if is_base64 else None
        except ValueError:  # binascii.Error, or letters that are not ASCII
            data = None
        if data is None:
            return Failure("fetch", "image_corrupt", f"{head[:40]!r} is no data URL of base64")
        if len(data) > self._max_image_bytes:
            return Failure(
                "fetch",
                "image_too_large",
                f"data URL of {len(data):,} bytes, more than {self._max_image_bytes:,}",
            )
        return _named(data)


def make_fetcher(spec: JobSpec, opener: StoreOpener, tell: Callable[[str], None]) -> MediaFetcher:
    """The fetcher that a job asks for. Raises SpecError."""
    return MediaFetcher(
        opener,
        spec.manifest,
        max_image_bytes=spec.limits.max_image_bytes,
        media=spec.media,
        cache=_make_cache(spec.media, tell),
        fetch_web=_make_web_fetcher(spec) if spec.media.allow_http else None,
    )


def _make_cache(media: Media, tell: Callable[[str], None]) -> MediaCache | None:
    if not media.cache_bytes:
        return None
    try:
        folder = Path(media.cache).expanduser() if media.cache else default_folder()
    except RuntimeError:
        tell("images are not kept on disk: there is no home folder; --media-cache names another")
        return None
    return MediaCache(folder, media.cache_bytes, tell)


def _make_web_fetcher(spec: JobSpec) -> Callable[[str], bytes]:
    """The engine's own, with its guard. Not imported at the top: most jobs need no Pillow here."""
    from vlmflow_engine.vl.fetch import MediaFetcher as WebFetcher

    try:
        fetch = WebFetcher(
            allowed_media_domains=spec.media.allowed_media_domains,
            max_image_bytes=spec.limits.max_image_bytes,
        )
    except ConfigError as error:
        raise SpecError(f"media.{error}") from error

    def fetch_web(url: str) -> bytes:
        data = fetch(url)
        assert isinstance(data, bytes)
        return data

    return fetch_web


def _is_web(uri: str) -> bool:
    return scheme(uri) in ("http", "https")


def _named(data: bytes) -> ImageBytes:
    return ImageBytes(data, sha256(data).hexdigest())


def _failure(error: Exception) -> Failure:
    """The failure of a record whose image raised this. Raises CredentialsError: it is nobody's."""
    if isinstance(error, CredentialsError):
        raise error
    if isinstance(error, MediaError):
        return Failure("fetch", error.error_class, str(error), error.retryable)
    if isinstance(error, StoreError):
        return Failure("fetch", "image_unreachable", str(error), retryable=True)
    if isinstance(error, ObjectMissingError):
        return Failure("fetch", "image_not_found", str(error))
    if isinstance(error, ObjectTooLargeError):
        return Failure("fetch", "image_too_large", str(error))
    return Failure("fetch", "image_forbidden", str(error))
