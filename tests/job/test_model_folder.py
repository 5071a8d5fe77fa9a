"""Whatever a spec calls the model by, the engine gets a folder and the job an identity."""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.hub_server import Hub, serve_hub
from tests.job.jobs import make_model, make_spec, read_lines, records, run_job, start_job
from tests.job.jobs import write_manifest as write
from vlmflow.job.engine_process import COMMAND_VARIABLE
from vlmflow.job.errors import IdentityError, SpecError
from vlmflow.job.job_engine import JobEngine
from vlmflow.job.loop import StopSignal
from vlmflow.job.model_folder import find_model
from vlmflow.job.progress import LineDisplay
from vlmflow.job.store import StoreOpener

MAIN = {"config.json": b"{}", "model.safetensors": b"weights"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub(Hub({"owner/tiny": {"main": MAIN, "v1": MAIN}})) as hub:
        yield hub


def find(tmp_path: Path, **spec):
    made = make_spec(tmp_path, tmp_path / "m.jsonl", tmp_path / "out", **spec)
    opener = StoreOpener(made.endpoint_url)
    return find_model(made, opener, display=LineDisplay(), stop=StopSignal())


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    model = find(tmp_path)
    assert model.path == tmp_path / "model" and model.origin == str(model.path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("/no/where", "model '/no/where': no such folder, and not a name of the model hub"),
        (
            "https://u:pw@host/x?sig=1",
            "model 'https://host/x': https: is not supported; a model is",
        ),
        ("s3://", "'s3://' names no bucket"),
    ],
)
def test_what_is_no_name_of_a_model_is_refused(name: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        find(tmp_path, model=name)
    assert str(caught.value).startswith(sentence)


def test_a_pinned_revision_is_asked_for_before_the_hub_is(tmp_path: Path) -> None:
    engine = {"revision": "main", "require_pinned_revision": True}
    with pytest.raises(SpecError, match="revision must be the full hash of a commit"):
        find(tmp_path, model="owner/tiny", engine=engine)


@pytest.mark.parametrize("how", ["option", "variable", "default"])
def test_a_model_of_s3_is_kept_where_the_user_says(
    how: str, tmp_path: Path, bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StoreOpener(s3_endpoint).open(f"s3://{bucket}/models/tiny")
    for name, data in MAIN.items():
        store.write(name, data)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    if how == "variable":
        monkeypatch.setenv("VLMFLOW_MODEL_CACHE", str(tmp_path / "named"))
    option = {"model_cache": str(tmp_path / "named")} if how == "option" else {}
    model = find(tmp_path, model=f"{store.uri}/", endpoint_url=s3_endpoint, **option)
    base = tmp_path / ("user/vlmflow/models" if how == "default" else "named")
    assert model.path.is_relative_to(base) and model.origin == store.uri
    same = tmp_path / "same"
    make_model(same)
    (same / "model.safetensors").write_bytes(b"weights")
    assert find(tmp_path, model=str(same)).digest == model.digest  # wherever it lies


def test_a_job_runs_a_model_of_s3_and_another_upload_is_another_job(
    tmp_path: Path, bucket: str, s3_endpoint: str, fake_engine: Path
) -> None:
    store = StoreOpener(s3_endpoint).open(f"s3://{bucket}/models/tiny")
    for name, data in MAIN.items():
        store.write(name, data)
    manifest, output = write(tmp_path / "m.jsonl", records(3)), tmp_path / "out"
    spec = {"model": store.uri, "endpoint_url": s3_endpoint}
    report = run_job(tmp_path, manifest, output, **spec)
    assert report["job"]["model"] == store.uri and report["counts"]["succeeded"] == 3
    assert run_job(tmp_path, manifest, output, **spec) == report
    store.write("model.safetensors", b"others!")
    with pytest.raises(IdentityError, match=r"model was \S+ and is "):
        run_job(tmp_path, manifest, output, **spec)


@pytest.mark.process
def test_a_job_runs_a_model_of_the_hub_and_names_the_commits_if_its_branch_moves(
    tmp_path: Path, hub: Hub
) -> None:
    manifest = write(tmp_path / "m.jsonl", records(3))
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }

    def run(*more: str) -> tuple[int, str]:
        process = start_job(
            [
                "--manifest",
                str(manifest),
                "--model",
                "owner/tiny",
                "--output",
                str(tmp_path / "out"),
            ]
            + ["--no-mlflow", *more],
            **environment,
        )
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    old = hub.commit("owner/tiny", "main")
    code, errors = run("--revision", "main")
    assert code == 0, errors
    assert len(read_lines(str(tmp_path / "out" / "m"), "results")) == 3
    job = json.loads((tmp_path / "out" / "m" / "_work" / "job.json").read_text())
    assert job["resolved"]["model"] == f"owner/tiny at commit {old}"
    assert run("--revision", old, "--require-pinned-revision")[0] == 0  # the same model
    code, errors = run("--revision", "main", "--require-pinned-revision")
    assert code == 2 and "revision must be the full hash of a commit" in errors

    hub.repositories["owner/tiny"]["main"] = MAIN | {"model.safetensors": b"others!"}
    new = hub.commit("owner/tiny", "main")
    code, errors = run("--revision", "main")
    assert code == 2
    assert f"the model was owner/tiny at commit {old} and is owner/tiny at commit {new}" in errors
    assert os.listdir(tmp_path / "out") == ["m"]


def test_the_engine_is_told_the_folder_and_what_the_user_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import json, os, socket, sys; from vlmflow_engine.wire import FrameSocket;"
        "link = FrameSocket(socket.socket(fileno=int(sys.argv[2]))); start = link.receive();"
        "start['config'] = os.environ['TQDM_DISABLE'];"
        "link.send({'type': 'failed', 'message': json.dumps(start)})"
    )
    monkeypatch.setenv(COMMAND_VARIABLE, shlex.join([sys.executable, "-c", script]))
    made = make_spec(tmp_path, tmp_path / "m.jsonl", tmp_path / "out", model="owner/tiny")
    engine = JobEngine(made, StopSignal(), print)
    engine.process.model = "/some/folder"
    engine.start("auto")
    with pytest.raises(SpecError) as caught:
        engine.wait_until_ready()
    engine.stop()
    assert json.loads(str(caught.value)) == {
        "type": "start",
        "model": "/some/folder",
        "model_name": "owner/tiny",
        "config": "1",  # the engine draws no bars on the job's terminal
    }
