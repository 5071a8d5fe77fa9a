"""Checksums of objects: what a real store gives, and which of it can be believed."""

import base64
import hashlib
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from vlmflow.job.store import Store, StoreOpener
from vlmflow.job.store.base import ObjectChangedError, ObjectMissingError
from vlmflow.job.store.checksum import Checksum
from vlmflow.job.store.s3 import _checksum

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

DATA = b"weights" * 1000
MD5 = hashlib.md5(DATA).hexdigest()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("algorithm", ["SHA256", "SHA1", "CRC32"])
def test_checksum_that_an_object_was_put_with_is_that_of_its_content(
    algorithm: Any, bucket: str, s3_client: "S3Client", opener: StoreOpener
) -> None:
    s3_client.put_object(Bucket=bucket, Key="x", Body=DATA, ChecksumAlgorithm=algorithm)
    store = opener.open(f"s3://{bucket}")
    checksum = store.checksum("x", store.stat("x").etag)
    assert checksum is not None and checksum.algorithm == algorithm.lower()
    hasher = checksum.hasher()
    hasher.update(DATA[:100])
    hasher.update(DATA[100:])
    assert hasher.hexdigest() == checksum.value


def test_object_that_has_changed_has_no_checksum(store: Store) -> None:
    store.write("x", DATA)
    etag = store.stat("x").etag
    store.write("x", DATA + b"!")
    with pytest.raises(ObjectChangedError):
        store.checksum("x", etag)
    with pytest.raises(ObjectMissingError):
        store.checksum("y", etag)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"ETag": f'"{MD5}"'}, Checksum("md5", MD5)),
        ({"ETag": f'"{MD5}"', "ServerSideEncryption": "AES256"}, Checksum("md5", MD5)),
        ({"ETag": f'"{MD5}"', "ServerSideEncryption": "aws:kms"}, None),
        ({"ETag": f'"{MD5}"', "SSECustomerAlgorithm": "AES256"}, None),
        ({"ETag": f'"{MD5}-3"'}, None),
        ({"ETag": '"whatever"'}, None),
        (
            {"ETag": f'"{MD5}-3"', "ChecksumCRC32": base64_of(zlib.crc32(DATA).to_bytes(4))},
            Checksum("crc32", f"{zlib.crc32(DATA):08x}"),
        ),
        ({"ETag": f'"{MD5}-3"', "ChecksumSHA256": base64_of(bytes(32)) + "-3"}, None),
        (
            {"ETag": '"x-3"', "ChecksumSHA256": base64_of(bytes(32)), "ChecksumType": "COMPOSITE"},
            None,
        ),
    ],
)
def test_only_what_is_of_the_whole_content_is_believed(
    answer: Any, expected: Checksum | None
) -> None:
    assert _checksum(answer) == expected
