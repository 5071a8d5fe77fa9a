"""Airflow's pages in a real browser: the mapped DAG after a run, the links, the form.

Needs a Chromium on the PATH. KEEP_SCREENSHOTS names a folder for those who want to look.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.airflow.e2e.browser import BROWSER, BROWSERS, Page, browser
from tests.airflow.e2e.world import DAG, World

pytestmark = [
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.timeout(900),
    pytest.mark.skipif(BROWSER is None, reason=f"no browser on the PATH: {', '.join(BROWSERS)}"),
]

RUN = "seen"


@pytest.fixture(scope="module")
def seen(world: World) -> World:
    """A run that is over."""
    world.write_manifest(RUN, 40)
    world.trigger(RUN, manifest=f"s3://demo/shapes/{RUN}.jsonl")
    state = world.api.wait_for_run(DAG, RUN, seconds=600)
    assert state == "success", world.explain(DAG, RUN)
    return world


@pytest.fixture
def page(seen: World, tmp_path: Path) -> Iterator[Page]:
    cookies = {"_token": seen.api.token()}
    with browser(tmp_path / "browser", cookies, seen.airflow.url) as page:
        yield page


def keep(page: Page, name: str, tmp_path: Path) -> None:
    time.sleep(2)  # what is drawn moves into its place
    page.screenshot(Path(os.environ.get("KEEP_SCREENSHOTS", tmp_path)) / f"{name}.png")


def test_the_graph_shows_the_mapped_task_and_the_branch_that_was_taken(seen, page, tmp_path):
    page.open(f"{seen.airflow.url}/dags/{DAG}/runs/{RUN}", "wait_for_manifest", "infer")
    page.click("Show Graph (Press g)")
    page.wait_for("VLMBatchInferenceOperator", "VLMCompareOperator", "publish", "alert")
    page.wait_for("infer [4]")
    keep(page, "airflow-graph", tmp_path)


def test_a_task_has_its_links(seen, page, tmp_path):
    task = f"{seen.airflow.url}/dags/{DAG}/runs/{RUN}/tasks/merge"
    page.open(f"{task}/details", "Extra Links", "MLflow run", "Report", "Results")
    links = seen.api.links(DAG, RUN, "merge")
    for name in ("MLflow run", "Report", "Results"):
        assert page.target_of(name) == links[name]
    keep(page, "airflow-links", tmp_path)


def test_the_form_is_filled_in_and_explains_itself(seen, page, tmp_path):
    page.open(f"{seen.airflow.url}/dags/{DAG}", DAG)
    page.click("Trigger Dag")
    page.wait_for("s3://demo/shapes/manifest.jsonl", "Manifest", "Shards", "Gate")
    page.wait_for("Tasks that work at the same time, if there are slots.")
    keep(page, "airflow-form", tmp_path)
