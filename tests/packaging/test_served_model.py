"""A logged model in MLflow's hands answers as it should, in this process and as a server."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from tests.packaging.conftest import CHECKPOINT, MLFLOW_NOISE
from vlmflow.job.errors import SpecError

pytestmark = MLFLOW_NOISE

ENGINE = {"dtype": "float32", "device_type": "cpu", "num_gpu_blocks": 128}
ENGINE |= {"num_preprocess_workers": 0}


@pytest.fixture(scope="module", autouse=True)
def tracking_uri(mlflow_uri):
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(mlflow_uri)
    yield mlflow_uri
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def model(log):
    """As anybody gets it who knows MLflow and not us."""
    log(engine=ENGINE, generation={"max_new_tokens": 64}, name="served", alias="champion")
    return mlflow.pyfunc.load_model("models:/served@champion")


def test_every_form_of_an_image_gets_the_right_answer(model, asked):
    text = base64.b64encode(asked.image).decode()
    forms = [asked.image, text, f"data:image/png;base64,{text}", [asked.image]]
    rows = model.predict([{"prompt": asked.prompt, "image": form} for form in forms])
    assert list(rows["text"]) == [asked.answer] * 4
    assert set(rows["finish_reason"]) == {"stop"} and list(rows["error"]) == [None] * 4
    assert (rows["prompt_tokens"] > 20).all() and (rows["completion_tokens"] > 5).all()


def test_bad_rows_have_their_errors_and_harm_no_other(model, asked):
    bad = ["s3://bucket/key", "a.png", b"no image at all", "https://127.0.0.1/a.png"]
    rows = [{"prompt": asked.prompt, "image": image} for image in (*bad, asked.image)]
    answers = model.predict([*rows, {"prompt": " ", "image": asked.image}])
    assert list(answers["finish_reason"]) == ["error"] * 4 + ["stop", "error"]
    errors = list(answers["error"])
    assert answers["text"][4] == asked.answer and errors[4] is None
    assert all(error.startswith("invalid_request: image") for error in errors[:2])
    assert "15 bytes that are no image" in errors[2]
    assert "127.0.0.1 is refused: images are fetched from public addresses only" in errors[3]
    assert errors[5].startswith("invalid_request: prompt must be a text")


def test_a_request_has_options_of_its_own(model, asked):
    row = {"prompt": asked.prompt, "image": asked.image}
    short = model.predict([row], params={"max_new_tokens": 2})
    assert (short["finish_reason"][0], short["completion_tokens"][0]) == ("length", 2)
    with pytest.raises(MlflowException, match="temperature"):
        model.predict([row], params={"temperature": 9.0})


def test_the_options_that_were_logged_are_the_defaults(log, asked):
    logged = log(engine=ENGINE, generation={"max_new_tokens": 3})
    model = mlflow.pyfunc.load_model(logged.uri)
    answer = model.predict([{"prompt": asked.prompt, "image": asked.image}])
    assert answer["completion_tokens"][0] == 3
    defaults = {param.name: param.default for param in model.metadata.get_params_schema().params}
    assert defaults["max_new_tokens"] == 3 and defaults["random_seed"] is None


@pytest.mark.parametrize("is_copied", [False, True])
def test_a_checkpoint_that_has_changed_or_gone_is_refused_unless_it_was_copied(
    is_copied, log, asked, tmp_path
):
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINT, folder)
    uri = log(model=str(folder), engine=ENGINE, copy_weights=is_copied).uri
    (folder / "generation_config.json").write_text('{"max_length": 20}')
    if is_copied:
        shutil.rmtree(folder)
        answer = mlflow.pyfunc.load_model(uri).predict(
            [{"prompt": asked.prompt, "image": asked.image}]
        )
        assert answer["text"][0] == asked.answer
        return
    with pytest.raises((SpecError, MlflowException), match="is not the one that was logged"):
        mlflow.pyfunc.load_model(uri)
    shutil.rmtree(folder)
    with pytest.raises((SpecError, MlflowException), match="is not to be had here"):
        mlflow.pyfunc.load_model(uri)


@contextmanager
def serving(model_uri: str, tracking_uri: str, log_file):
    """`mlflow models serve` on loopback; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["models", "serve", "-m", model_uri, "--env-manager", "local", "--host", "127.0.0.1"]
    with log_file.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command, "--port", str(port), "--workers", "1"],
            env={
                **os.environ,
                "MLFLOW_TRACKING_URI": tracking_uri,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        else:
            raise RuntimeError(log_file.read_text()[-3000:])
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(
        f"{url}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


@pytest.mark.slow
@pytest.mark.process
def test_mlflow_serves_it_and_answers_pictures_in_json(model, asked, mlflow_uri, tmp_path):
    image = base64.b64encode(asked.image).decode()
    rows = [{"prompt": asked.prompt, "image": image}, {"prompt": asked.prompt, "image": "a.png"}]
    with serving("models:/served@champion", mlflow_uri, tmp_path / "log") as url:
        good, bad = post(url, {"dataframe_records": rows})["predictions"]
        assert (good["text"], good["error"]) == (asked.answer, None)
        assert bad["finish_reason"] == "error" and "reads no files" in bad["error"]
        short = post(url, {"dataframe_records": rows[:1], "params": {"max_new_tokens": 2}})
        assert short["predictions"][0]["completion_tokens"] == 2
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(url, {"dataframe_records": rows[:1], "params": {"top_p": 7.0}})
        assert caught.value.code == 400 and b"top_p" in caught.value.read()
        caught.value.close()
