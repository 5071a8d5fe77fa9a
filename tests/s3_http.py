"""An S3 server on loopback, spoken to in plain HTTP: not every environment has boto3."""

import json
import urllib.request
import xml.etree.ElementTree as ET
from typing import Any
from urllib.parse import urlencode

# moto looks whether a request is signed, not by whom.
_SIGNED = "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, Signature=0"
_NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"
_TAGS = ("Key", "NextContinuationToken")


class S3Server:
    """Speaks HTTP to it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def put(self, place: str, body: bytes = b"") -> None:
        """Write bucket/key, or make a bucket."""
        self._ask("PUT", place, body)

    def read(self, place: str) -> bytes:
        return self._ask("GET", place)

    def keys(self, bucket: str, prefix: str) -> list[str]:
        """All below a prefix, in order."""
        found: list[str] = []
        query = {"list-type": "2", "prefix": prefix}
        while True:
            page = ET.fromstring(self._ask("GET", f"{bucket}?{urlencode(query)}"))
            texts = {tag: [str(e.text) for e in page.iter(_NAMESPACE + tag)] for tag in _TAGS}
            found += texts["Key"]
            if not texts["NextContinuationToken"]:
                return found
            (query["continuation-token"],) = texts["NextContinuationToken"]

    def lines(self, bucket: str, prefix: str) -> list[dict[str, Any]]:
        """The lines of all objects below a prefix, in order."""
        return [
            json.loads(line)
            for key in self.keys(bucket, prefix)
            for line in self.read(f"{bucket}/{key}").splitlines()
        ]

    def _ask(self, method: str, place: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(
            f"{self.endpoint}/{place}",
            method=method,
            data=body,
            headers={"Authorization": _SIGNED, "Content-Type": "application/octet-stream"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())
