"""One MLflow run, through MlflowClient: no active run, no global state, no background pool."""

import io
import json
import logging
import os
import warnings
from dataclasses import dataclass, field
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from vlmflow.tracking.experiment import find_experiment
from vlmflow.tracking.side_thread import MetricPoint

_DIGEST_CHARACTERS = 36  # MLflow's limit


@dataclass(frozen=True, slots=True)
class RunDescription:
    """What a run is called and what it says of itself from its first moment."""

    name: str
    experiment: str
    tags: dict[str, str]
    params: dict[str, str]
    dataset_name: str
    dataset_uri: str
    dataset_digest: str
    dataset_profile: dict[str, Any] = field(default_factory=dict)


class MlflowRun:
    """A run that was opened: ours, resumed, or somebody else's that we were told to write to."""

    def __init__(self, client: MlflowClient, run_id: str, *, is_ours: bool) -> None:
        self._client = client
        self.run_id = run_id
        self.is_ours = is_ours  # a run that was handed to us is not ours to end
        self.experiment_id: str = client.get_run(run_id).info.experiment_id

    @property
    def tracking_uri(self) -> str:
        uri: str = self._client.tracking_uri
        return uri

    def send_points(self, points: list[MetricPoint]) -> None:
        self._client.log_batch(
            self.run_id,
            metrics=[Metric(p.key, p.value, p.timestamp_ms, p.step) for p in points],
        )

    def log_params(self, params: dict[str, str]) -> None:
        """Log parameters; one that a resumed run has already is left as it is."""
        known = self._client.get_run(self.run_id).data.params
        new = [Param(key, value) for key, value in params.items() if key not in known]
        self._client.log_batch(self.run_id, params=new)

    def set_tags(self, tags: dict[str, str]) -> None:
        self._client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in tags.items()])

    def log_json(self, content: dict[str, Any], name: str) -> None:
        self._client.log_text(self.run_id, json.dumps(content, indent=1), name)

    def log_text(self, text: str, name: str) -> None:
        self._client.log_text(self.run_id, text, name)

    def log_table(self, rows: list[dict[str, Any]], name: str) -> None:
        """Log a table; a value of bytes is an image file and shown as a picture."""
        if not rows:
            return
        columns = {key: [_cell(row[key]) for row in rows] for key in rows[0]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pandas' and Pillow's, about MLflow's own code
            self._client.log_table(self.run_id, columns, name)

    def end(self, status: str) -> None:
        """End a run that is ours: FINISHED, FAILED or KILLED."""
        if self.is_ours:
            self._client.set_terminated(self.run_id, status)


def open_run(uri: str | None, known_run_id: str | None, description: RunDescription) -> MlflowRun:
    """Attach to MLFLOW_RUN_ID, else go on with a known run, else create one."""
    _be_quiet()
    client = MlflowClient(tracking_uri=uri)
    attached = os.environ.get("MLFLOW_RUN_ID")
    if attached:
        run = MlflowRun(client, attached, is_ours=False)
    else:
        run = _resume(client, known_run_id) or _create(client, description)
    run.set_tags(description.tags)
    run.log_params(description.params)
    return run


def _resume(client: MlflowClient, run_id: str | None) -> MlflowRun | None:
    if run_id is None:
        return None
    try:
        client.update_run(run_id, status="RUNNING")
        return MlflowRun(client, run_id, is_ours=True)
    except MlflowException:  # of another server, or deleted
        return None


def _create(client: MlflowClient, description: RunDescription) -> MlflowRun:
    experiment_id = find_experiment(client, description.experiment)
    created = client.create_run(experiment_id, run_name=description.name)
    run = MlflowRun(client, created.info.run_id, is_ours=True)
    dataset = Dataset(
        name=description.dataset_name,
        digest=description.dataset_digest[:_DIGEST_CHARACTERS],
        source_type="s3" if description.dataset_uri.startswith("s3://") else "local",
        source=json.dumps({"uri": description.dataset_uri}),
        profile=json.dumps(description.dataset_profile),
    )
    tag = InputTag("mlflow.data.context", "inference")
    client.log_inputs(run.run_id, [DatasetInput(dataset, [tag])])
    return run


def _cell(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    from PIL import Image

    return mlflow.Image(Image.open(io.BytesIO(value)))


def _be_quiet() -> None:
    """Only what concerns the user reaches his terminal."""
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.utils.environment"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # A server that is down is told once and soon; MLflow's own default tries for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
