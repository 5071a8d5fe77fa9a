"""Whatever a job writes, says or logs: no secret that it was told is in it."""

import base64
import json
from pathlib import Path

import pytest

from tests.job.conftest import SECRET_KEY
from tests.job.jobs import make_model, records, start_job
from vlmflow.job.store import StoreOpener

pytestmark = pytest.mark.process

PICTURE = base64.b64encode(b"a picture that nobody else may have").decode()
PLANTED = {
    "the S3 key": SECRET_KEY,
    "a session token": "planted-session-token",
    "a presigned query": "planted-signature",
    "a password in an image's URL": "planted-password",
    "a password of the tracking server": "planted-tracking-password",
    "an image in base64": PICTURE,
}
HOST = "images.example.invalid"
LINES = [
    *records(20),
    {"id": "stored", "prompt": "x", "images": ["a.png"]},
    {"id": "data", "prompt": "x", "images": [f"data:image/png;base64,{PICTURE}"]},
    {"id": "broken", "prompt": "x", "images": [f"data:image/png;base64,{PICTURE}!"]},
    {"id": "text", "prompt": "x", "images": [f"data:image/png,{PICTURE}"]},
    {
        "id": "signed",
        "prompt": "x",
        "images": [f"https://{HOST}/a.png?X-Amz-Signature=planted-signature#planted-signature"],
    },
    {"id": "user", "prompt": "x", "images": [f"http://me:planted-password@{HOST}/a.png"]},
    {"id": "scheme", "prompt": "x", "images": [f"ftp://me:planted-password@{HOST}/a.png"]},
    {"id": "slashes", "prompt": "x", "images": [f"https:\\\\me:planted-password@{HOST}\\a.png"]},
    f'{{"id": "line", "prompt": "x", "images": ["https://{HOST}/?planted-signature"',
    {"id": "refused", "prompt": "refuse", "images": [f"data:image/png;base64,{PICTURE}"]},
]


@pytest.mark.parametrize(
    ("tracking", "more"),
    [
        ("a database", []),
        ("a server that is away", ["--allow-http"]),
        pytest.param("a database", ["--allow-http"], marks=pytest.mark.slow),
        pytest.param("a server that is away", [], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_no_secret_is_in_anything_that_a_run_writes(
    tracking: str, more: list[str], tmp_path: Path, bucket: str, s3_endpoint: str, s3_client
) -> None:
    body = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in LINES)
    s3_client.put_object(Bucket=bucket, Key="m.jsonl", Body=body.encode())
    s3_client.put_object(Bucket=bucket, Key="a.png", Body=b"a picture")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    if tracking != "a database":
        uri = "http://me:planted-tracking-password@127.0.0.1:9/?planted-tracking-password"
    process = start_job(
        [
            "--manifest", f"s3://{bucket}/m.jsonl", "--output", f"s3://{bucket}/out",
            "--model", str(make_model(tmp_path / "model")), "--endpoint-url", s3_endpoint,
            "--mlflow-uri", uri, "--max-failure-rate", "0.9", *more,
        ],
        AWS_SESSION_TOKEN="planted-session-token",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        MLFLOW_ARTIFACT_ROOT=str(tmp_path / "artifacts"),
        XDG_CACHE_HOME=str(tmp_path / "cache"),
    )  # fmt: skip
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    store = StoreOpener(s3_endpoint).open(f"s3://{bucket}/out")
    written = {key: store.read(key) for key in store.list("")}
    assert {"m/report.json", "m/report.html", "m/_SUCCESS.json"} <= set(written)
    report = json.loads(written["m/report.json"])
    # Each of these was met, or the search below would find nothing for another reason.
    assert report["failures"]["image_corrupt"]["count"] == 2
    assert report["counts"]["succeeded"] == 22
    assert HOST in errors or HOST.encode() in written["m/failures/00000.jsonl"]
    written |= {"standard output": out.encode(), "standard error": errors.encode()}
    if tracking == "a database":
        assert report["mlflow"]["run_id"]
        written["mlflow.db"] = (tmp_path / "mlflow.db").read_bytes()
    else:
        assert "error" in report["mlflow"]
    for name, secret in PLANTED.items():
        found = [key for key, data in written.items() if secret.encode() in data]
        assert found == [], f"{name} is in {found}"
