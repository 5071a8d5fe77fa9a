"""Who started this job: what Airflow and Kubeflow tell their tasks by the environment."""

import os
from urllib.parse import quote

_TAGS = {
    "AIRFLOW_CTX_DAG_ID": "airflow.dag_id",
    "AIRFLOW_CTX_TASK_ID": "airflow.task_id",
    "AIRFLOW_CTX_DAG_RUN_ID": "airflow.run_id",
    "AIRFLOW_CTX_TRY_NUMBER": "airflow.try_number",
    "AIRFLOW_CTX_MAP_INDEX": "airflow.map_index",
    "KFP_RUN_ID": "kfp.run_id",
    "KFP_TASK_NAME": "kfp.task_name",
    "KFP_POD_NAME": "kfp.pod_name",
    "KFP_POD_UID": "kfp.pod_uid",
    "VLMFLOW_IMAGE_DIGEST": "image.digest",
}
# Where people look at a task; an address and no secret.
_AIRFLOW_URL = ("AIRFLOW__API__BASE_URL", "AIRFLOW__WEBSERVER__BASE_URL")
_KFP_URL = "KFP_UI_URL"


def orchestrator_tags() -> dict[str, str]:
    """Tags of what is set in the environment."""
    return {tag: os.environ[name] for name, tag in _TAGS.items() if os.environ.get(name)}


def orchestrator_links(tags: dict[str, str]) -> list[str]:
    """Links to the task or the run, in Markdown, as far as the environment says where they are."""
    links = []
    url = next((os.environ[name] for name in _AIRFLOW_URL if os.environ.get(name)), None)
    names = [tags.get(f"airflow.{part}") for part in ("dag_id", "run_id", "task_id")]
    if url and all(names):
        dag, run, task = (quote(name or "", safe="") for name in names)
        links.append(f"[Airflow task]({url.rstrip('/')}/dags/{dag}/runs/{run}/tasks/{task})")
    url = os.environ.get(_KFP_URL)
    if url and "kfp.run_id" in tags:
        run = quote(tags["kfp.run_id"], safe="")
        links.append(f"[Kubeflow run]({url.rstrip('/')}/#/runs/details/{run})")
    return links
