"""`vlmflow log-model`: a checkpoint and its options as a model of MLflow."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmflow import __version__
from vlmflow.job.errors import SpecError, StoreError
from vlmflow.job.identity import checkpoint_files
from vlmflow.job.model_folder import ModelFolder, ModelSource, find_checkpoint
from vlmflow.job.progress import Say
from vlmflow.job.registered_model import PREFIX, WEIGHTS, without_tracking_secrets
from vlmflow.job.store import StoreOpener
from vlmflow.job.store.locate import is_s3
from vlmflow.job.stored_model import StoredModel, options_to_store
from vlmflow.job.tracked.model_names import engine_key, model_params, shown_name
from vlmflow.packaging.request import PackageRequest
from vlmflow.packaging.signature import make_input_example, make_signature
from vlmflow_engine.errors import VlmflowError
from vlmflow_engine.hub import commit_of


@dataclass(frozen=True, slots=True)
class LoggedPackage:
    """A model that was logged."""

    model_id: str
    tracking_uri: str
    stored: StoredModel
    name: str | None
    version: str | None

    @property
    def uri(self) -> str:
        """What --model takes, and never means another model."""
        if self.version is None:
            return f"{PREFIX}{self.model_id}"
        return f"{PREFIX}{self.name}/{self.version}"


def log_model(
    request: PackageRequest, *, say: Say, is_stopped: Callable[[], bool]
) -> LoggedPackage:
    """Log a checkpoint, and register it if it has a name.

    Raises SpecError for what is amiss, StoreError if a store or MLflow does not answer.
    """
    folder = _find(request, say, is_stopped)
    stored = _stored(request, folder)
    # Loading MLflow takes seconds; a model that is not there is told before.
    try:
        from vlmflow.tracking.lifecycle import connect
        from vlmflow.tracking.logged_model import ModelDescription
        from vlmflow.tracking.model_registry import RegistryAwayError, log_package, register
    except ImportError as error:
        raise SpecError("log-model needs MLflow; pip install 'vlmflow[job]'") from error
    # What the engine would find out by itself is nobody's to say before it has run.
    known: dict[str, Any] = {
        "quant": request.engine.quant,
        "quant_policy": request.engine.quant_policy,
    }
    if request.engine.dtype != "auto":
        known = {"dtype": request.engine.dtype, **known}
    options = {
        f"{group}.{name}": str(value)
        for group, values in (("engine", stored.engine), ("generation", stored.generation))
        for name, value in values.items()
        if name not in known
    }
    description = ModelDescription(
        digest=stored.digest,
        engine_key=engine_key(known) if "dtype" in known else "",
        name=shown_name(stored.reference, stored.digest),
        params=model_params(stored.reference, stored.digest, known) | options,
    )
    client = connect(request.tracking.uri)
    try:
        model_id = log_package(
            client,
            request.tracking.experiment,
            description,
            lambda place, model: _write(place, model, stored, folder),
        )
        version = None
        if request.name is not None:
            version = register(client, model_id, request.name, request.alias)
    except RegistryAwayError as error:
        raise StoreError(without_tracking_secrets(str(error), request.tracking.uri)) from None
    except VlmflowError as error:
        raise SpecError(without_tracking_secrets(str(error), request.tracking.uri)) from None
    return LoggedPackage(model_id, client.tracking_uri, stored, request.name, version)


def _find(request: PackageRequest, say: Say, is_stopped: Callable[[], bool]) -> ModelFolder:
    if request.model.startswith(PREFIX):
        raise SpecError(
            f"model {request.model!r} is logged already; give the checkpoint that it refers to"
        )
    source = ModelSource(
        model=request.model,
        revision=request.engine.revision,
        require_pinned_revision=request.engine.require_pinned_revision,
        download_dir=request.engine.download_dir,
        endpoint_url=request.endpoint_url,
        cache=request.model_cache,
    )
    opener = StoreOpener(request.endpoint_url)
    return find_checkpoint(source, opener, say=say, is_stopped=is_stopped)


def _stored(request: PackageRequest, folder: ModelFolder) -> StoredModel:
    engine, generation = options_to_store(request.engine, request.generation)
    reference, commit = request.model, None
    if is_s3(reference):
        reference = folder.origin
    elif Path(reference).expanduser().is_dir():
        reference = str(Path(reference).expanduser().resolve())
    else:
        commit = commit_of(folder.path)
    return StoredModel(
        reference=reference,
        revision=commit,
        endpoint_url=request.endpoint_url if is_s3(reference) else None,
        digest=folder.digest,
        has_weights=request.copy_weights,
        engine=engine,
        generation=generation,
    )


def _write(place: Path, model: Any, stored: StoredModel, folder: ModelFolder) -> None:
    """Write an MLflow model's files to a folder that is not there yet."""
    import mlflow

    with tempfile.TemporaryDirectory(prefix="vlmflow-") as staged:
        mlflow.pyfunc.save_model(
            path=str(place),
            python_model=str(Path(__file__).with_name("pyfunc_script.py")),
            mlflow_model=model,
            model_config=stored.as_config(),
            signature=make_signature(stored.generation),
            input_example=make_input_example(),
            pip_requirements=[f"vlmflow[engine,job]=={__version__}"],
            artifacts=_begin_copy(Path(staged), folder.path) if stored.has_weights else None,
        )
    if stored.has_weights:
        _link_files(folder.path, place / "artifacts" / WEIGHTS)


def _begin_copy(staged: Path, checkpoint: Path) -> dict[str, str]:
    """Name the artifact to MLflow by its smallest file: it copies what it is given, links never."""
    (staged / WEIGHTS).mkdir()
    shutil.copy(checkpoint / "config.json", staged / WEIGHTS)
    return {WEIGHTS: str(staged / WEIGHTS)}


def _link_files(checkpoint: Path, target: Path) -> None:
    """Put the files that decide the digest there, and no others; they are read once, to be sent."""
    for path in checkpoint_files(checkpoint):
        link = target / path.relative_to(checkpoint)
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
