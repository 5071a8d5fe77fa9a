"""An S3 server in a process of the engine's environment: this one has neither moto nor boto3."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.s3_http import S3Server

ROOT = Path(__file__).parents[3]
ENGINE_PYTHON = ROOT / ".venv/bin/python"


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
