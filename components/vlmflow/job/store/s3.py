"""An S3 bucket, or a part of one, as a store."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from vlmflow.job.errors import (
    CredentialsError,
    ExpiredCredentialsError,
    SpecError,
    StoreError,
)
from vlmflow.job.store.base import (
    ObjectChangedError,
    ObjectForbiddenError,
    ObjectInfo,
    ObjectMissingError,
    ObjectTooLargeError,
)
from vlmflow.job.store.checksum import Checksum
from vlmflow.job.store.credentials import S3Credentials
from vlmflow_engine.errors import VlmflowError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectRequestTypeDef, HeadObjectOutputTypeDef

_CHUNK_BYTES = 1 << 20
# What a browser shows when a person opens it there; else what S3 says of an object by itself.
_CONTENT_TYPES = {".html": "text/html; charset=utf-8", ".json": "application/json"}
_CONTENT_TYPE = "binary/octet-stream"
_NO_ANSWER = (HTTPClientError, ConnectionError, IncompleteReadError)


def make_client(
    endpoint_url: str | None, *, max_connections: int, credentials: S3Credentials | None = None
) -> "S3Client":
    """Make a client. Credentials come from boto3's own chain, unless the caller has some."""
    make = boto3.client
    if credentials is not None:
        # Not the default session, which is one for all threads and has credentials of its own.
        make = boto3.session.Session(
            aws_access_key_id=credentials.access_key,
            aws_secret_access_key=credentials.secret_key,
            aws_session_token=credentials.session_token,
            region_name=credentials.region,
        ).client
    try:
        return make(
            "s3",
            endpoint_url=endpoint_url,
            config=Config(
                connect_timeout=10,
                read_timeout=60,
                max_pool_connections=max_connections,
                retries={"mode": "standard", "total_max_attempts": 6},
                # A store on a host of our own seldom has a wildcard name for its buckets.
                s3={"addressing_style": "path"} if endpoint_url else {},
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise SpecError(f"cannot reach S3 at {endpoint_url!r}: {error}") from error


class S3Store:
    """Keys below `prefix` in `bucket`. Clients of boto3 may be shared between threads."""

    def __init__(self, client: "S3Client", bucket: str, prefix: str = "") -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.uri = f"s3://{bucket}/{self._prefix}".rstrip("/")

    def stat(self, key: str) -> ObjectInfo:
        try:
            answer = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        except (ClientError, BotoCoreError) as error:
            raise self._error(key, error) from error
        return ObjectInfo(key, answer["ContentLength"], answer["ETag"])

    def read(self, key: str, *, max_bytes: int | None = None) -> bytes:
        answer = self.read_if_changed(key, None, max_bytes=max_bytes)
        assert answer is not None
        return answer[0]

    def read_if_changed(
        self, key: str, known_etag: str | None, *, max_bytes: int | None = None
    ) -> tuple[bytes, str] | None:
        request: GetObjectRequestTypeDef = {"Bucket": self._bucket, "Key": self._prefix + key}
        if known_etag is not None:
            request["IfNoneMatch"] = known_etag
        # boto3 retries a request, but not a body that breaks off while it is read.
        for attempt in (1, 2, 3):
            try:
                answer = self._client.get_object(**request)
                size = answer["ContentLength"]
                if max_bytes is not None and size > max_bytes:
                    answer["Body"].close()
                    raise ObjectTooLargeError(
                        f"{self.uri}/{key} has {size:,} bytes, more than {max_bytes:,}"
                    )
                return answer["Body"].read(), answer.get("ETag", "")
            except (ClientError, BotoCoreError) as error:
                if isinstance(error, ClientError) and _code(error) in ("304", "NotModified"):
                    return None
                if attempt == 3 or isinstance(error, ClientError):
                    raise self._error(key, error) from error
        raise AssertionError("unreachable")

    def stream(self, key: str, *, etag: str | None = None, start: int = 0) -> Iterator[bytes]:
        etag = etag or self.stat(key).etag
        position, failures = start, 0
        while True:
            try:
                answer = self._client.get_object(
                    Bucket=self._bucket,
                    Key=self._prefix + key,
                    IfMatch=etag,
                    Range=f"bytes={position}-",
                )
                for chunk in answer["Body"].iter_chunks(_CHUNK_BYTES):
                    position += len(chunk)
                    failures = 0
                    yield chunk
                return
            except ClientError as error:
                if _code(error) == "InvalidRange":  # it broke off, or begins, just at its end
                    return
                raise self._error(key, error) from error
            except BotoCoreError as error:  # it broke off: go on where it did
                failures += 1
                if failures > 5:
                    raise self._error(key, error) from error

    def checksum(self, key: str, etag: str) -> Checksum | None:
        try:
            answer = self._client.head_object(
                Bucket=self._bucket, Key=self._prefix + key, IfMatch=etag, ChecksumMode="ENABLED"
            )
        except (ClientError, BotoCoreError) as error:
            raise self._error(key, error) from error
        return _checksum(answer)

    def create(self, key: str, data: bytes) -> bool:
        for _ in range(5):
            try:
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._prefix + key,
                    Body=data,
                    ContentType=_content_type(key),
                    IfNoneMatch="*",
                )
                return True
            except ClientError as error:
                code = _code(error)
                if code in ("PreconditionFailed", "412"):
                    # Perhaps our own: boto3 repeats a request whose answer was lost.
                    return self.read(key) == data
                if code in ("NotImplemented", "501"):  # the probe will see that this is no race
                    return self._create_unguarded(key, data)
                if code not in ("ConditionalRequestConflict", "409"):
                    raise self._error(key, error) from error
            except BotoCoreError as error:
                raise self._error(key, error) from error
        raise StoreError(f"{self.uri}/{key}: the store keeps reporting a conflict")

    def _create_unguarded(self, key: str, data: bytes) -> bool:
        try:
            self.stat(key)
        except ObjectMissingError:
            self.write(key, data)
            return True
        return self.read(key) == data

    def write(self, key: str, data: bytes) -> None:
        try:
            self._client.put_object(
                Bucket=self._bucket,
                Key=self._prefix + key,
                Body=data,
                ContentType=_content_type(key),
            )
        except (ClientError, BotoCoreError) as error:
            raise self._error(key, error) from error

    def write_file(self, key: str, path: Path) -> None:
        try:
            self._client.upload_file(
                str(path),
                self._bucket,
                self._prefix + key,
                ExtraArgs={"ContentType": _content_type(key)},
            )
        except (ClientError, BotoCoreError) as error:
            raise self._error(key, error) from error
        except boto3.exceptions.S3UploadFailedError as error:
            raise self._error(key, error.__context__ or error) from error

    def delete(self, key: str) -> None:
        try:
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)
        except (ClientError, BotoCoreError) as error:
            raise self._error(key, error) from error

    def list(self, prefix: str) -> Iterator[str]:
        for info in self.list_objects(prefix):
            yield info.key

    def list_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix
        )
        try:
            for page in pages:
                for item in page.get("Contents", []):
                    key = item["Key"][len(self._prefix) :]
                    yield ObjectInfo(key, item["Size"], item["ETag"])
        except (ClientError, BotoCoreError) as error:
            raise self._error(prefix, error) from error

    def _error(self, key: str, error: BaseException) -> VlmflowError:
        """Our own sentence: what boto3 says may quote a signed URL."""
        name = f"{self.uri}/{key}"
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            return CredentialsError(
                f"{name}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or a profile"
            )
        if isinstance(error, ParamValidationError):
            return SpecError(f"{name!r} is no name that S3 allows")
        if isinstance(error, ClientError):
            code = _code(error)
            if code == "NoSuchBucket":
                return ObjectMissingError(f"bucket {self._bucket!r} does not exist")
            if code in ("NoSuchKey", "404", "NotFound"):
                return ObjectMissingError(f"{name} does not exist")
            if code in ("AccessDenied", "403", "Forbidden"):
                return ObjectForbiddenError(f"{name}: access denied ({code})")
            if code in ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"):
                return ExpiredCredentialsError(
                    f"{name}: the credentials have expired ({code}); what is committed stays, "
                    "the same command with new ones goes on"
                )
            if code in ("SignatureDoesNotMatch", "InvalidToken", "InvalidAccessKeyId"):
                return CredentialsError(f"{name}: the credentials are refused ({code})")
            if code in ("PreconditionFailed", "412"):
                return ObjectChangedError(f"{name} has changed")
            return StoreError(f"{name}: S3 answers {code}")
        kind = type(error).__name__
        what = "does not answer" if isinstance(error, _NO_ANSWER) else "failed"
        return StoreError(f"{name}: S3 {what} ({kind})")


def _content_type(key: str) -> str:
    return _CONTENT_TYPES.get(PurePosixPath(key).suffix, _CONTENT_TYPE)


def _code(error: ClientError) -> str:
    details: Any = error.response.get("Error", {})
    return str(details.get("Code", "unknown"))


def _checksum(answer: "HeadObjectOutputTypeDef") -> Checksum | None:
    """Choose the best of those that are of the whole object and that hashlib or zlib computes."""
    if answer.get("ChecksumType") != "COMPOSITE":
        for algorithm, value in (
            ("sha256", answer.get("ChecksumSHA256")),
            ("sha1", answer.get("ChecksumSHA1")),
            ("crc32", answer.get("ChecksumCRC32")),
        ):
            if value and "-" not in value:  # "-3": of three parts' checksums
                return Checksum(algorithm, base64.b64decode(value).hex())
    etag = answer["ETag"].strip('"')
    # Of an object that came in parts, or is encrypted by a key of KMS or the caller's, it is none.
    is_md5 = re.fullmatch("[0-9a-f]{32}", etag) and not (
        answer.get("SSECustomerAlgorithm")
        or answer.get("ServerSideEncryption", "AES256") != "AES256"
    )
    return Checksum("md5", etag) if is_md5 else None
