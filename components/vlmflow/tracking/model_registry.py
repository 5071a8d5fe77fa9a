"""Models that MLflow holds: which one a models:/ URI means, what its files say, and a new one.

A URI is `models:/name/version`, `models:/name/latest`, `models:/name@alias` or
`models:/<model id>`, as MLflow has them, or `models:/name/alias`. MLflow's own reading of that last
one, a stage, is gone from it.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow  # noqa: TID253
from mlflow import MlflowClient  # noqa: TID253
from mlflow.exceptions import MlflowException  # noqa: TID253
from mlflow.models import Model  # noqa: TID253

from vlmflow.tracking.experiment import find_experiment
from vlmflow.tracking.logged_model import ModelDescription, create_model
from vlmflow_engine.errors import VlmflowError

_URI = re.compile(r"models:/(?P<name>[^/:@'\s]+)(?:/(?P<suffix>[^/@'\s]+)|@(?P<alias>[^/@'\s]+))?")
# What the server says of a name, a version or an alias that is not there, or cannot be one.
_NOT_THERE = frozenset(("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"))
_TEMPORARY = frozenset(("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"))


_MAX_COPIES = 10  # of a version, one made from the other


class RegistryError(VlmflowError):
    """There is no such model, or MLflow refuses one."""


class RegistryAwayError(VlmflowError):
    """The tracking server does not answer: nothing is known of the model."""


@dataclass(frozen=True, slots=True)
class FoundModel:
    """What a URI means at this moment."""

    model_id: str
    name: str | None  # of the registry; None: the model was named by its id
    version: str | None
    config: dict[str, Any]  # what was stored with it; empty if it is no pyfunc with a config


def find_model_of(client: MlflowClient, uri: str) -> FoundModel:
    """Look a URI up, and read what its MLmodel file says. Raises RegistryError."""
    found = _URI.fullmatch(uri)
    if found is None:
        raise RegistryError(
            f"model {uri!r} is no URI of a registered model; write models:/name/version, "
            "models:/name/alias, models:/name@alias or models:/<model id>"
        )
    name, suffix, alias = found["name"], found["suffix"], found["alias"]
    with _telling(client, uri):
        if suffix is None and alias is None:
            model_id: str | None = client.get_logged_model(name).model_id
            return FoundModel(str(model_id), None, None, _config_of(client, str(model_id)))
        version = _version(client, name, suffix, alias)
        model_id = _model_id_of(client, version)
        if model_id is None:  # registered from a run's artifacts, by an older MLflow
            return FoundModel("", name, str(version.version), {})
        return FoundModel(model_id, name, str(version.version), _config_of(client, model_id))


def fetch_files(client: MlflowClient, model_id: str, below: str, target: Path) -> Path:
    """Fetch a folder of a model's files into `target`; return where it is. Raises RegistryError."""
    with _telling(client, f"models:/{model_id}"):
        return _download(client, model_id, below, target)


def log_package(
    client: MlflowClient, experiment: str, description: ModelDescription, write: Any
) -> str:
    """Create a LoggedModel of files; return its id.

    write  called with a folder that is not there yet and the mlflow Model; it writes the files
    """
    with _telling(client, experiment), tempfile.TemporaryDirectory(prefix="vlmflow-") as place:
        model_id = create_model(client, find_experiment(client, experiment), description)
        status = "FAILED"
        try:
            folder = Path(place) / "model"
            write(folder, Model(model_id=model_id))
            client.log_model_artifacts(model_id, str(folder))
            status = "READY"
        finally:
            client.finalize_logged_model(model_id, status)
    return model_id


def register(client: MlflowClient, model_id: str, name: str, alias: str | None) -> str:
    """Make a model the next version of a name, and an alias mean it; return the version."""
    with _telling(client, f"models:/{name}"), _as_default(client.tracking_uri):
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"models:/{model_id}"
        version = str(client.create_model_version(name, source, model_id=model_id).version)
        if alias is not None:
            client.set_registered_model_alias(name, alias, version)
    return version


def _version(client: MlflowClient, name: str, suffix: str | None, alias: str | None) -> Any:
    if alias is not None or suffix is None:
        return client.get_model_version_by_alias(name, alias)
    if suffix.isdigit():
        return client.get_model_version(name, suffix)
    if suffix.lower() != "latest":
        return client.get_model_version_by_alias(name, suffix)
    versions = client.search_model_versions(
        f"name = '{name}'", max_results=1, order_by=["version_number DESC"]
    )
    if not versions:
        raise RegistryError(f"model 'models:/{name}/{suffix}': there is no version of that name")
    return versions[0]


def _model_id_of(client: MlflowClient, version: Any) -> str | None:
    """The LoggedModel that a version is made of; a version copied to another name leads to it."""
    for _ in range(_MAX_COPIES):
        if version.model_id:
            return str(version.model_id)
        source = _URI.fullmatch(version.source or "")
        if source is None:
            return None
        if source["suffix"] is None and source["alias"] is None:
            return source["name"]
        version = _version(client, source["name"], source["suffix"], source["alias"])
    return None


def _config_of(client: MlflowClient, model_id: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="vlmflow-") as place:
        flavors = Model.load(str(_download(client, model_id, "MLmodel", Path(place)))).flavors
    config: dict[str, Any] = flavors.get("python_function", {}).get("config") or {}
    return config


def _download(client: MlflowClient, model_id: str, below: str, target: Path) -> Path:
    # Not models:/<model id>/..., which MLflow takes for a name and looks for in its default store.
    location = client.get_logged_model(model_id).artifact_location
    return Path(
        mlflow.artifacts.download_artifacts(
            artifact_uri=f"{location}/{below}",
            dst_path=str(target),
            tracking_uri=client.tracking_uri,
        )
    )


@contextmanager
def _telling(client: MlflowClient, what: str) -> Iterator[None]:
    """Make one sentence of what MLflow raises."""
    try:
        yield
    except MlflowException as error:
        reason = (str(error).splitlines() or [""])[0][:300]
        if error.error_code in _NOT_THERE:
            raise RegistryError(f"model {what!r}: MLflow has none such: {reason}") from error
        kind = RegistryAwayError if error.error_code in _TEMPORARY else RegistryError
        raise kind(f"model {what!r}: MLflow does not give it: {reason}") from error
    except OSError as error:  # a local store's files
        raise RegistryError(
            f"model {what!r}: its files cannot be read: {error.strerror or error}"
        ) from error


@contextmanager
def _as_default(uri: str) -> Iterator[None]:
    """Let MLflow's default be this store: its SQL registry looks a version's model up there."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
