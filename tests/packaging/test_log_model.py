"""`vlmflow log-model` on a real MLflow store: what is stored, what is refused."""

import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from tests.packaging.conftest import CHECKPOINT, MLFLOW_NOISE
from vlmflow import __version__
from vlmflow.cli import main
from vlmflow.job.errors import SpecError, StoreError
from vlmflow.job.identity import model_digest
from vlmflow.job.registered_model import look_up
from vlmflow.packaging.request import PackageRequest
from vlmflow.tracking.model_registry import fetch_files

pytestmark = MLFLOW_NOISE

TINY = {"config.json": b"{}", "model.safetensors": b"weights"}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder that is a checkpoint to whoever does not load it."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name, data in TINY.items():
        (folder / name).write_bytes(data)
    (folder / "README.md").write_text("not part of the model")
    return folder


def test_the_command_says_what_it_stored_and_the_alias_means_it(mlflow_uri, capsys):
    arguments = ["log-model", "--model", str(CHECKPOINT), "--mlflow-uri", mlflow_uri]
    arguments += ["--dtype", "float32", "--max-new-tokens", "64", "--session-len", "512"]
    arguments += ["--name", "told", "--alias", "champion"]
    assert main([*arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {name: value for name, _, value in (line.partition("  ") for line in lines)}
    told = {name: value.strip() for name, value in told.items()}
    digest = model_digest(str(CHECKPOINT))
    assert (told["model"], told["alias"]) == ("models:/told/1", "champion")
    assert told["stored"] == f"a reference to {CHECKPOINT}" and told["digest"] == digest
    assert "engine.session_len=512" in told["options"]
    assert main([*arguments]) == 0
    found = look_up("models:/told@champion", mlflow_uri)
    assert (found.version, found.stored.digest) == ("2", digest)
    assert found.stored.engine == {"dtype": "float32", "session_len": 512}
    assert found.stored.generation == {"max_new_tokens": 64}


def test_a_version_copied_to_another_name_is_the_same_model(log, mlflow_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    logged = log(name="staging")
    copied = MlflowClient(mlflow_uri).copy_model_version(logged.uri, "production")
    found = look_up(f"models:/production/{copied.version}", mlflow_uri)
    assert (found.model_id, found.stored) == (logged.model_id, logged.stored)


def test_it_is_known_on_the_models_page_as_jobs_know_it(log, mlflow_uri):
    logged = log(engine={"dtype": "float32"}, generation={"max_new_tokens": 7})
    model = MlflowClient(mlflow_uri).get_logged_model(logged.model_id)
    digest = model_digest(str(CHECKPOINT))
    assert model.tags["model.digest"] == digest
    assert model.tags["engine.key"] == "dtype=float32 quant_policy=0"
    assert model.params == {
        "path": str(CHECKPOINT),
        "digest": digest,
        "dtype": "float32",
        "quant_policy": "0",
        "generation.max_new_tokens": "7",
    }
    assert model.name == f"checkpoint-{digest[:8]}" and model.status == "READY"


def test_a_dtype_that_the_engine_will_choose_is_not_made_up(log, mlflow_uri):
    tags = MlflowClient(mlflow_uri).get_logged_model(log().model_id).tags
    assert "engine.key" not in tags and "mlflow.model.isExternal" not in tags


def test_nothing_is_pickled_and_the_requirements_name_this_version(log, mlflow_uri, tmp_path):
    logged = log()
    folder = fetch_files(MlflowClient(mlflow_uri), logged.model_id, "", tmp_path)
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"pyfunc_script.py", "MLmodel", "input_example.json"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".safetensors"))]
    assert f"vlmflow[engine,job]=={__version__}" in (folder / "requirements.txt").read_text()
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 100_000


def test_a_copy_holds_the_files_that_decide_an_answer_and_no_others(
    log, mlflow_uri, tiny, tmp_path
):
    logged = log(model=str(tiny), copy_weights=True)
    client = MlflowClient(mlflow_uri)
    folder = fetch_files(client, logged.model_id, "artifacts/checkpoint", tmp_path / "fetched")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == TINY
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert model_digest(str(folder)) == logged.stored.digest


def test_a_model_of_the_hub_is_stored_with_its_commit(log, tmp_path):
    """The hub's cache as a download leaves it; nobody is asked."""
    commit, place = "1234567890" * 4, tmp_path / "models--owner--tiny"
    (place / "snapshots" / commit).mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs/v1").write_text(commit)
    for name, data in TINY.items():
        (place / "snapshots" / commit / name).write_bytes(data)
    values = {"download_dir": str(tmp_path), "revision": "v1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        stored = log(model="owner/tiny", engine=values).stored
    assert (stored.reference, stored.revision) == ("owner/tiny", commit)
    assert stored.engine == {}  # folders of this machine are no one else's


def test_a_folder_is_stored_so_that_it_is_found_from_elsewhere(log, tiny, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    assert log(model="tiny").stored.reference == str(tiny)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"alias": "champion"}, "alias 'champion' is of a registered model; give its name too"),
        ({"model": "models:/a/1"}, "model 'models:/a/1' is logged already"),
        ({"model": "/no/where"}, "model '/no/where': no such folder"),
        ({"generation": {"n": 2}}, "n is not for jobs"),
        ({"endpoint_url": "http://u:geheim@host"}, "endpoint_url 'http://host' must have no user"),
        ({"name": "a/b"}, "MLflow"),
        ({"name": "fine", "alias": "v1"}, "MLflow"),
    ],
)
def test_what_is_amiss_is_one_sentence(values, sentence, log):
    with pytest.raises(SpecError) as caught:
        log(**values)
    text = str(caught.value)
    assert sentence in text and "geheim" not in text and "\n" not in text


def test_a_server_that_is_away_is_told_without_its_password(log, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StoreError) as caught:
        log(tracking={"uri": "http://me:hunter2@127.0.0.1:9"})
    assert "127.0.0.1" in str(caught.value) and "hunter2" not in str(caught.value)


def test_a_request_is_strict():
    with pytest.raises(SpecError, match="weights"):
        PackageRequest.parse({"model": "x", "weights": True})


def test_a_model_of_another_maker_is_not_ours(mlflow_uri, tmp_path):
    script = tmp_path / "other.py"
    script.write_text(
        "from mlflow.models import set_model\n"
        "from mlflow.pyfunc import PythonModel\n"
        "class Other(PythonModel):\n"
        "    def predict(self, context, model_input: list[str], params=None): return model_input\n"
        "set_model(Other())\n"
    )
    client = MlflowClient(mlflow_uri)
    folder = tmp_path / "model"
    mlflow.pyfunc.save_model(folder, python_model=str(script), pip_requirements=[])
    model = client.create_logged_model(client.create_experiment("other"), name="other")
    client.log_model_artifacts(model.model_id, str(folder))
    with pytest.raises(SpecError, match="was not logged by `vlmflow log-model`"):
        look_up(f"models:/{model.model_id}", mlflow_uri)
    shutil.rmtree(folder)
