"""An MLflow experiment by name, made if there is none."""

from pathlib import Path
from typing import Any


def find_experiment(client: Any, name: str) -> str:
    """Return its id. `client` is an MlflowClient."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            created: str = client.create_experiment(
                name, artifact_location=_artifact_location(client.tracking_uri)
            )
            return created
        except MlflowException:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:  # nobody was faster: the reason was another
                raise
    experiment_id: str = experiment.experiment_id
    return experiment_id


def _artifact_location(tracking_uri: str) -> str | None:
    """Beside a local database, wherever the command was run; a server decides for itself."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    database = Path(tracking_uri.removeprefix("sqlite:///")).absolute()
    return (database.parent / "mlartifacts").as_uri()
