"""MLflow's own page of a job's run, in a real browser: pictures, texts and plots are there.

Needs a Chromium on the PATH. KEEP_SCREENSHOTS names a folder for those who want to look.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

import pytest
from PIL import Image

from examples.shapes.manifest import write_manifest
from tests.job.jobs import FAKE_ENGINE, make_model
from vlmflow.job.engine_process import COMMAND_VARIABLE
from vlmflow.tracking.lifecycle import connect

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.skipif(BROWSER is None, reason=f"no browser on the PATH: {', '.join(BROWSERS)}"),
]


def browse(tmp_path: Path, url: str, *arguments: str) -> str:
    done = subprocess.run(
        [
            str(BROWSER),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--hide-scrollbars",
            "--window-size=1500,1000",
            f"--user-data-dir={tmp_path / 'browser'}",
            "--virtual-time-budget=30000",
            *arguments,
            url,
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )
    return done.stdout


def run_job(server: str, folder: Path, *arguments: str) -> None:
    manifest = folder / "input/manifest.jsonl"
    if not manifest.exists():
        manifest = write_manifest(folder / "input")
    model = folder / "model"
    subprocess.run(
        [
            *(sys.executable, "-m", "vlmflow", "run", "--manifest", str(manifest)),
            *("--model", str(model if model.exists() else make_model(model))),
            *("--output", str(folder / "out"), "--mlflow-uri", server, *arguments),
        ],
        check=True,
        env={
            **os.environ,
            COMMAND_VARIABLE: FAKE_ENGINE,
            "FAKE_ENGINE_SECONDS": "0.02",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
        },
    )


def test_people_see_description_metrics_and_pictures(server, tmp_path):
    run_job(server, tmp_path, "--experiment", "seen")
    client = connect(server)
    experiment = client.get_experiment_by_name("seen").experiment_id
    [run] = client.search_runs([experiment])
    page = f"{server}/#/experiments/{experiment}/runs/{run.info.run_id}"
    overview = browse(tmp_path, page, "--dump-dom")
    assert run.info.run_name in overview
    assert "records succeeded" in overview and "records_per_second" in overview
    table = browse(tmp_path, f"{page}/artifacts/samples.json", "--dump-dom")
    assert "scene-0" in table and "get-artifact?path=table_images" in table
    folder = Path(os.environ.get("KEEP_SCREENSHOTS", tmp_path))
    for name in ("", "model-metrics", "artifacts/samples.json", "traces"):
        shot = folder / f"{name.replace('/', '-') or 'run'}.png"
        browse(tmp_path, f"{page}/{name}", f"--screenshot={shot}")
        with Image.open(shot) as image:
            colours = image.convert("RGB").getcolors(1 << 24)
            assert colours is not None and len(colours) > 200, f"{name} is nearly empty"


def test_people_see_two_runs_beside_each_other(server, tmp_path):
    for number in (8, 9):
        run_job(
            server,
            tmp_path,
            *("--experiment", "compared", "--name", f"job-{number}"),
            *("--max-new-tokens", str(number)),
        )
    client = connect(server)
    experiment = client.get_experiment_by_name("compared").experiment_id
    runs = client.search_runs([experiment])
    ids = json.dumps([run.info.run_id for run in runs])
    query = urlencode({"runs": ids, "experiments": json.dumps([experiment])})
    page = browse(tmp_path, f"{server}/#/compare-runs?{query}", "--dump-dom")
    for run in runs:
        assert run.info.run_name in page
    assert "generation.max_new_tokens" in page and "records_per_second" in page
