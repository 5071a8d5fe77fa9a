"""`--model models:/...`: the job runs what MLflow's registry names, and tells which that was."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.job.jobs import make_model, make_spec, records, run_job, write_manifest
from tests.packaging.conftest import MLFLOW_NOISE
from vlmflow.cli import main
from vlmflow.job.errors import IdentityError, SpecError, StoreError
from vlmflow.job.identity import model_digest
from vlmflow.job.loop import StopSignal
from vlmflow.job.model_folder import find_model
from vlmflow.job.progress import LineDisplay
from vlmflow.job.registered_model import look_up, resolve_registered
from vlmflow.job.store import StoreOpener
from vlmflow.packaging.log_model import LoggedPackage, log_model
from vlmflow.packaging.request import PackageRequest

pytestmark = [*MLFLOW_NOISE, pytest.mark.usefixtures("fake_engine")]


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    """One registry for all tests: making it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


@pytest.fixture
def log(uri, tmp_path):
    """Logs the model of `make_model`, whose weights are `content`."""

    def log(content: str = "a", **values: Any) -> LoggedPackage:
        folder = make_model(tmp_path / f"model-{content}")
        (folder / "model.safetensors").write_text(content)
        request = {"model": str(folder), "tracking": {"uri": uri}, **values}
        return log_model(PackageRequest.parse(request), say=print, is_stopped=lambda: False)

    return log


def tracking(uri: str) -> dict[str, Any]:
    return {"tracking": {"enabled": False, "uri": uri}}


def run(tmp_path: Path, uri: str, model: str, **spec: Any) -> dict[str, Any]:
    manifest = write_manifest(tmp_path / "m.jsonl", records(5))
    return run_job(tmp_path, manifest, tmp_path / "out", model=model, **tracking(uri) | spec)


@pytest.mark.parametrize("form", ["version", "alias", "at", "latest", "id"])
def test_every_form_of_a_uri_runs_the_checkpoint_and_is_named_in_the_report(
    form, uri, log, tmp_path
):
    logged = log(name=f"by-{form}", alias="champion")
    model = {
        "version": f"models:/by-{form}/1",
        "alias": f"models:/by-{form}/champion",
        "at": f"models:/by-{form}@champion",
        "latest": f"models:/by-{form}/latest",
        "id": f"models:/{logged.model_id}",
    }[form]
    job = run(tmp_path, uri, model)["job"]
    is_id = form == "id"
    assert job["registered_model"] == {
        "uri": model,
        "model_id": logged.model_id,
        "name": None if is_id else f"by-{form}",
        "version": None if is_id else "1",
    }
    assert job["model"] == str(tmp_path / "model-a")
    assert job["model_digest"] == model_digest(str(tmp_path / "model-a"))


def test_it_is_the_same_job_as_one_that_names_the_checkpoint(uri, log, tmp_path):
    logged = log(name="same")
    report = run(tmp_path, uri, logged.uri)
    again = run(tmp_path, uri, str(tmp_path / "model-a"))
    assert again["job"]["identity"] == report["job"]["identity"] and len(again["attempts"]) == 1


def test_an_alias_that_moved_is_refused_with_both_versions(uri, log, tmp_path):
    log(name="moving", alias="champion")
    run(tmp_path, uri, "models:/moving@champion")
    log("b", name="moving", alias="champion")
    with pytest.raises(IdentityError) as caught:
        run(tmp_path, uri, "models:/moving@champion")
    text = str(caught.value)
    assert "model was" in text
    for version, content in ((1, "a"), (2, "b")):
        folder = tmp_path / f"model-{content}"
        assert f"models:/moving@champion (version {version}): {folder}" in text


def test_stored_options_fill_in_for_defaults_and_are_part_of_the_identity(
    uri, log, tmp_path, capsys
):
    options = {
        "engine": {"session_len": 256, "dtype": "bfloat16"},
        "generation": {"max_new_tokens": 9, "top_p": 0.5},
    }
    logged = log(name="options", **options)
    generation = {"max_new_tokens": 4}
    report = run(tmp_path, uri, logged.uri, generation=generation)
    spec = report["job"]["spec"]
    assert (spec["generation"]["max_new_tokens"], spec["generation"]["top_p"]) == (4, 0.5)
    assert (spec["engine"]["session_len"], report["engine"]["dtype"]) == (256, "bfloat16")
    parts = json.loads((tmp_path / "out/m/_work/job.json").read_text())["identity_parts"]
    assert parts["generation.top_p"] == 0.5 and parts["engine.session_len"] == 256
    told = capsys.readouterr().err
    assert "engine.session_len=256" in told and "max_new_tokens=9" not in told
    with pytest.raises(IdentityError, match="generation.top_p was 0.5 and is 1.0"):
        run(tmp_path, uri, logged.uri, generation=generation, use_stored_options=False)


def test_a_reference_whose_files_changed_or_went_is_refused(uri, log, tmp_path):
    logged = log(name="changed")
    (tmp_path / "model-a/model.safetensors").write_text("z")
    with pytest.raises(SpecError, match="is not the one that was logged .digest was"):
        run(tmp_path, uri, logged.uri)
    shutil.rmtree(tmp_path / "model-a")
    with pytest.raises(SpecError, match="is not to be had here"):
        run(tmp_path, uri, logged.uri)


def test_a_copy_is_fetched_once_and_needs_the_folder_no_more(uri, log, tmp_path):
    logged = log(name="copied", copy_weights=True)
    shutil.rmtree(tmp_path / "model-a")
    cache = {"model_cache": str(tmp_path / "models")}
    report = run(tmp_path, uri, logged.uri, **cache)
    assert report["counts"]["succeeded"] == 5
    [folder] = (tmp_path / "models/registered").iterdir()
    assert folder.name == logged.stored.digest == report["job"]["model_digest"]
    spec = make_spec(
        tmp_path, tmp_path / "m.jsonl", "x", model=logged.uri, **tracking(uri), **cache
    )
    before = folder.stat().st_ino
    spec, registered = resolve_registered(spec, print)
    display = LineDisplay()
    found = find_model(spec, StoreOpener(), registered, display=display, stop=StopSignal())
    assert found.path == folder and folder.stat().st_ino == before


def test_a_model_of_s3_is_found_by_its_own_endpoint(uri, log, tmp_path, bucket, s3_endpoint):
    store = StoreOpener(s3_endpoint).open(f"s3://{bucket}/models/tiny")
    for name, data in {"config.json": b"{}", "model.safetensors": b"weights"}.items():
        store.write(name, data)
    logged = log(
        model=store.uri,
        endpoint_url=s3_endpoint,
        model_cache=str(tmp_path / "one"),
        name="on-s3",
    )
    assert logged.stored.reference == store.uri
    report = run(tmp_path, uri, logged.uri, model_cache=str(tmp_path / "two"))
    assert report["job"]["model_digest"] == logged.stored.digest


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("models:/none-such/1", "models:/none-such/1"),
        ("models:/there/7", "models:/there/7"),
        ("models:/there@nobody", "models:/there@nobody"),
        ("models:/there/nobody", "models:/there/nobody"),
        ("models:/none-such/latest", "there is no version of that name"),
        ("models:/m-00000000000000000000000000000000", "MLflow has none such"),
        ("models:/a/b/c", "is no URI of a registered model; write models:/name/version"),
    ],
)
def test_what_is_not_there_is_one_sentence_and_exit_code_2(
    model, sentence, uri, log, tmp_path, capsys
):
    log(name="there")
    capsys.readouterr()
    manifest = write_manifest(tmp_path / "m.jsonl", records(1))
    arguments = ["--manifest", str(manifest), "--model", model, "--mlflow-uri", uri]
    assert main(["run", *arguments, "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("vlmflow: model ") and sentence in told and "\n" not in told
    assert not (tmp_path / "out").exists()


def test_a_revision_does_not_go_with_it(uri, tmp_path):
    with pytest.raises(SpecError, match="revision 'v1' does not go with model 'models:/x/1'"):
        run(tmp_path, uri, "models:/x/1", engine={"revision": "v1"})


def test_a_server_that_is_away_is_no_missing_model(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StoreError) as caught:
        look_up("models:/x/1", "http://me:hunter2@127.0.0.1:9")
    assert "hunter2" not in str(caught.value)


def test_the_forecast_of_check_takes_it_too(uri, log, tmp_path, capsys):
    log(name="checked")
    manifest = write_manifest(tmp_path / "m.jsonl", records(3))
    arguments = ["--manifest", str(manifest), "--model", "models:/checked/1", "--mlflow-uri", uri]
    arguments += ["--output", str(tmp_path / "out"), "--sample", "2", "--json"]
    assert main(["check", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["forecast"]["sampled"] == 2


def test_a_job_of_it_fills_the_models_own_page(uri, log, tmp_path):
    logged = log(name="page", alias="champion")
    manifest = write_manifest(tmp_path / "m.jsonl", records(5))
    model = "models:/page@champion"
    report = run_job(
        tmp_path, manifest, tmp_path / "out", model=model, tracking={"uri": uri, "num_traces": 0}
    )
    client = MlflowClient(uri)
    run = client.get_run(report["mlflow"]["run_id"])
    assert [item.model_id for item in run.inputs.model_inputs] == [logged.model_id]
    tags = {name: value for name, value in run.data.tags.items() if name.startswith("model.")}
    assert (tags["model.uri"], tags["model.version"]) == (model, "1")
    page = client.get_logged_model(logged.model_id)
    assert {metric.key for metric in page.metrics} >= {"records_succeeded"}
    # What was left to the engine is known now, and jobs that name the folder find the same page.
    assert page.tags["engine.key"] == "dtype=float32 quant_policy=0"
    again = run_job(
        tmp_path,
        manifest,
        tmp_path / "other",
        model=str(tmp_path / "model-a"),
        tracking={"uri": uri, "num_traces": 0},
    )
    [used] = client.get_run(again["mlflow"]["run_id"]).inputs.model_inputs
    assert used.model_id == logged.model_id
