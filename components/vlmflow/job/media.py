"""Fetches the images of records. Only bytes are had here; the engine decodes them."""

import base64
from hashlib import sha256

from vlmflow.job.errors import CredentialsError, SpecError, StoreError
from vlmflow.job.record import Failure, FetchedImage, Record
from vlmflow.job.store import ObjectMissingError, StoreOpener
from vlmflow.job.store.base import ObjectForbiddenError, ObjectTooLargeError
from vlmflow.job.store.locate import is_s3, join, scheme, without_query


class MediaFetcher:
    """Gets images from where the manifest says. Used by several threads at a time."""

    def __init__(self, opener: StoreOpener, manifest_uri: str, *, max_image_bytes: int) -> None:
        self._opener = opener
        self._manifest_uri = manifest_uri
        self._max_image_bytes = max_image_bytes

    def fetch(self, record: Record) -> list[FetchedImage] | Failure:
        """Fetch all images of a record, or say why one of them cannot be had.

        Raises CredentialsError, which is no record's fault.
        """
        images = []
        for uri in record.image_uris:
            image = self._fetch_one(uri)
            if isinstance(image, Failure):
                return image
            images.append(image)
        return images

    def _fetch_one(self, uri: str) -> FetchedImage | Failure:
        if scheme(uri) == "data":
            return self._decode_data_url(uri)
        if scheme(uri) in ("http", "https"):
            return Failure(
                "fetch",
                "image_forbidden",
                f"{without_query(uri)}: images are not fetched over http(s); put them on S3",
            )
        where = join(self._manifest_uri, uri)
        if is_s3(self._manifest_uri) and not is_s3(where):
            # Who may write a manifest to a bucket may not therefore read this machine's files.
            return Failure(
                "fetch",
                "image_forbidden",
                f"{without_query(uri)!r}: a manifest on S3 may name s3:// images only",
            )
        try:
            store, key = self._opener.locate(where)
            data = store.read(key, max_bytes=self._max_image_bytes)
        except CredentialsError:  # no record's fault: it ends the job
            raise
        except ObjectMissingError as error:
            return Failure("fetch", "image_not_found", str(error))
        except ObjectTooLargeError as error:
            return Failure("fetch", "image_too_large", str(error))
        except (ObjectForbiddenError, SpecError) as error:
            return Failure("fetch", "image_forbidden", str(error))
        except StoreError as error:
            return Failure("fetch", "image_unreachable", str(error), retryable=True)
        return FetchedImage(without_query(uri), data, sha256(data).hexdigest())

    def _decode_data_url(self, uri: str) -> FetchedImage | Failure:
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
        return FetchedImage(head, data, sha256(data).hexdigest())
