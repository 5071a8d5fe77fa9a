"""The results of an MLflow run: its artifacts, or where a pointer says that they are."""

import json
from pathlib import Path
from typing import Any

from vlmflow.job.errors import SpecError
from vlmflow.tracking.reason import reason_of

RESULTS = "results.parquet"
POINTER = "results_pointer.json"
REPORT = "report.json"


class RunArtifacts:
    """The artifacts of one run, downloaded to a folder when they are asked for."""

    def __init__(self, run_id: str, folder: Path, tracking_uri: str | None) -> None:
        """Raises SpecError if there is no such run."""
        from mlflow.exceptions import MlflowException

        from vlmflow.tracking.lifecycle import connect

        self.run_id = run_id
        self._folder = folder
        self._client = connect(tracking_uri)
        try:
            self._client.get_run(run_id)
            self._names = {file.path for file in self._client.list_artifacts(run_id)}
        except MlflowException as error:
            raise SpecError(
                f"MLflow run {run_id!r} cannot be read: {reason_of(error)}; --mlflow-uri or "
                "MLFLOW_TRACKING_URI says where runs are"
            ) from error

    def file(self, name: str) -> Path | None:
        """An artifact, downloaded; None if the run has none of this name."""
        if name not in self._names:
            return None
        return Path(self._client.download_artifacts(self.run_id, name, str(self._folder)))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """An artifact that is a JSON object; None if the run has none of this name."""
        file = self.file(name)
        if file is None:
            return None
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return content
