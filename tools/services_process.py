"""tools.loopback_services for those who have neither moto nor MLflow: in a process of .venv."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).parents[1]
ENGINE_PYTHON = _ROOT / ".venv/bin/python"


@contextmanager
def services_process(folder: Path) -> Iterator[dict[str, str]]:
    """Start it; yield the URLs of an S3 server with the demo's data, `s3`, and of an MLflow server,
    `mlflow`. Both end with the block.
    """
    process = subprocess.Popen(
        [str(ENGINE_PYTHON), "-m", "tools.loopback_services", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=_ROOT,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()
