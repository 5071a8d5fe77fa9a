"""An S3 server in a process of the engine's environment: this one has neither moto nor boto3."""

import json
import subprocess
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
ENGINE_PYTHON = ROOT / ".venv/bin/python"
# moto looks whether a request is signed, not by whom.
_SIGNED = "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, Signature=0"


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
        """At most 1000."""
        answer = self._ask("GET", f"{bucket}?list-type=2&prefix={prefix}")
        return [str(item.text) for item in ET.fromstring(answer).iter() if item.tag[-4:] == "}Key"]

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


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Serve until the block ends."""
    with subprocess.Popen(
        [str(ENGINE_PYTHON), "-m", "tools.loopback_s3"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield S3Server(process.stdout.readline().strip())
        finally:
            process.stdin.close()
            process.wait(30)
