"""One MLflow run, through MlflowClient: no active run, no global state, no background pool."""

import json
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput, Metric, Param, RunTag

from vlmflow.tracking.metric_point import MAX_BATCH, MetricPoint

MAX_PARAMS = 40  # of a run; a page of more is not read
_MAX_PARAM_CHARACTERS = 500  # a param is a scalar: what is longer stands in config.json
_MAX_TAG_CHARACTERS = 8000  # MLflow's limit
_MAX_BATCH_ITEMS = 100  # params or tags in one call, MLflow's limit


class MlflowRun:
    """A run that was opened: ours, resumed, or somebody else's that we were told to write to."""

    def __init__(self, client: MlflowClient, run_id: str, *, is_ours: bool) -> None:
        self.client = client
        self.run_id = run_id
        self.is_ours = is_ours  # a run that was handed to us is not ours to end
        self.experiment_id: str = client.get_run(run_id).info.experiment_id

    @property
    def tracking_uri(self) -> str:
        uri: str = self.client.tracking_uri
        return uri

    def send_points(self, points: list[MetricPoint]) -> None:
        """Send at most MAX_BATCH points."""
        metrics = [Metric(p.key, p.value, p.timestamp_ms, p.step) for p in points]
        self.client.log_batch(self.run_id, metrics=metrics)

    def log_model_metrics(
        self, points: list[MetricPoint], *, model_id: str, dataset: tuple[str, str]
    ) -> None:
        """Log final metrics as the run's and a model's; `dataset` is the input's name and digest.

        So they are on the Models page too.
        """
        name, digest = dataset
        metrics = [
            Metric(
                point.key,
                point.value,
                point.timestamp_ms,
                point.step,
                model_id=model_id,
                dataset_name=name,
                dataset_digest=digest,
                run_id=self.run_id,
            )
            for point in points
        ]
        for first in range(0, len(metrics), MAX_BATCH):
            self.client.log_batch(self.run_id, metrics=metrics[first : first + MAX_BATCH])

    def link_model(self, model_id: str) -> None:
        """Say that this run ran a model."""
        inputs = self.client.get_run(self.run_id).inputs
        known = {item.model_id for item in inputs.model_inputs}
        if model_id not in known:
            self.client.log_inputs(self.run_id, models=[LoggedModelInput(model_id)])

    def log_params(self, params: dict[str, str]) -> None:
        """Log parameters, up to MAX_PARAMS of the run.

        One that a resumed run has already is left as it is: MLflow's never change.
        """
        known = self.client.get_run(self.run_id).data.params
        new = [
            Param(key, value[:_MAX_PARAM_CHARACTERS])
            for key, value in params.items()
            if key not in known
        ]
        new = new[: max(0, MAX_PARAMS - len(known))]
        for first in range(0, len(new), _MAX_BATCH_ITEMS):
            self.client.log_batch(self.run_id, params=new[first : first + _MAX_BATCH_ITEMS])

    def set_tags(self, tags: dict[str, str]) -> None:
        """Set tags; they may change."""
        items = [RunTag(key, value[:_MAX_TAG_CHARACTERS]) for key, value in tags.items()]
        for first in range(0, len(items), _MAX_BATCH_ITEMS):
            self.client.log_batch(self.run_id, tags=items[first : first + _MAX_BATCH_ITEMS])

    def log_json(self, content: Any, name: str) -> None:
        self.client.log_text(self.run_id, json.dumps(content, indent=1, ensure_ascii=False), name)

    def log_text(self, text: str, name: str) -> None:
        self.client.log_text(self.run_id, text, name)

    def log_files(self, folder: Path, below: str | None = None) -> None:
        """Log all files of a folder as artifacts."""
        self.client.log_artifacts(self.run_id, str(folder), below)

    def log_file(self, path: Path) -> None:
        """Log a file as an artifact of the same name."""
        self.client.log_artifact(self.run_id, str(path))

    def end(self, status: str) -> None:
        """End a run that is ours: FINISHED, FAILED or KILLED."""
        if self.is_ours:
            self.client.set_terminated(self.run_id, status)
