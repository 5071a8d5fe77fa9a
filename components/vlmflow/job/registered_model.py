"""`--model models:/name/version`: from an MLflow registry to a checkpoint and its options."""

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmflow.job.errors import SpecError, StoreError
from vlmflow.job.identity import model_digest
from vlmflow.job.progress import Say
from vlmflow.job.spec import JobSpec
from vlmflow.job.store.locate import without_secrets_of
from vlmflow.job.stored_model import StoredModel, with_stored_options
from vlmflow_engine.errors import VlmflowError

PREFIX = "models:/"
WEIGHTS = "checkpoint"  # the artifact that holds a copy


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """What a models:/ URI meant when the job looked it up."""

    uri: str  # as the user wrote it
    model_id: str
    name: str | None  # None: the URI is a model's id
    version: str | None
    stored: StoredModel

    @property
    def shown(self) -> str:
        """For a sentence: the URI, and which version that is."""
        return f"{self.uri} (version {self.version})" if self.version else self.uri

    def as_dict(self) -> dict[str, Any]:
        """For job.json and the report."""
        return {
            "uri": self.uri,
            "model_id": self.model_id,
            "name": self.name,
            "version": self.version,
        }


def resolve_registered(spec: JobSpec, say: Say) -> tuple[JobSpec, RegisteredModel | None]:
    """Return the spec of the checkpoint that a models:/ URI names; other specs as they are.

    Options at their defaults are those stored with the model, unless `use_stored_options` is off.
    Raises SpecError if there is no such model, StoreError if MLflow does not answer.
    """
    if not spec.model.startswith(PREFIX):
        return spec, None
    if spec.engine.revision is not None:
        raise SpecError(
            f"revision {spec.engine.revision!r} does not go with model {spec.model!r}, which was "
            "logged with a revision of its own; leave it out"
        )
    registered = look_up(spec.model, spec.tracking.uri)
    stored, told = registered.stored, list[str]()
    say(f"model {registered.shown}: {stored.reference}")
    if spec.use_stored_options:
        spec, told = with_stored_options(spec, stored)
    if told:
        say(f"model {registered.uri} was logged with {', '.join(told)}")
    engine = replace(spec.engine, revision=stored.revision)
    return spec.model_copy(update={"model": stored.reference, "engine": engine}), registered


def look_up(uri: str, tracking_uri: str | None) -> RegisteredModel:
    """Ask MLflow what a URI means. Raises SpecError, StoreError."""
    # Loading MLflow takes seconds, which only such jobs have to spend.
    try:
        from vlmflow.tracking.lifecycle import connect
        from vlmflow.tracking.model_registry import RegistryAwayError, find_model_of
    except ImportError as error:
        raise SpecError(f"model {uri!r} needs MLflow; pip install 'vlmflow[job]'") from error
    try:
        found = find_model_of(connect(tracking_uri), uri)
    except RegistryAwayError as error:
        raise StoreError(without_tracking_secrets(str(error), tracking_uri)) from None
    except VlmflowError as error:
        raise SpecError(without_tracking_secrets(str(error), tracking_uri)) from None
    stored = StoredModel.from_config(found.config, uri)
    return RegisteredModel(uri, found.model_id, found.name, found.version, stored)


def fetch_weights(registered: RegisteredModel, tracking_uri: str | None, cache: Path) -> Path:
    """Return the copied checkpoint's folder, fetched if it is not here. Raises SpecError.

    It is kept by its digest, so that processes which fetch it together leave one.
    """
    from vlmflow.tracking.lifecycle import connect
    from vlmflow.tracking.model_registry import fetch_files

    target = cache / "registered" / registered.stored.digest
    if target.is_dir():
        return target
    place = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=target.parent, prefix=".part-"))
        client = connect(tracking_uri)
        found = fetch_files(client, registered.model_id, f"artifacts/{WEIGHTS}", place)
        check_digest(registered.uri, str(found), model_digest(str(found)), registered.stored)
        try:
            os.rename(found, target)
        except OSError:
            if not target.is_dir():  # else somebody else was faster, with the same files
                raise
    except OSError as error:
        raise SpecError(
            f"model {registered.uri!r} cannot be kept in {cache}: {error.strerror or error}; "
            "name another --model-cache"
        ) from error
    except VlmflowError as error:
        raise SpecError(without_tracking_secrets(str(error), tracking_uri)) from None
    finally:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
    return target


def check_digest(uri: str, where: str, digest: str, stored: StoredModel) -> None:
    """Raise SpecError if a checkpoint is not the one that was logged."""
    if digest != stored.digest:
        raise SpecError(
            f"model {uri!r}: the checkpoint in {where} is not the one that was logged (digest was "
            f"{stored.digest[:8]}… and is {digest[:8]}…); put the old files back, or log it again "
            "with `vlmflow log-model`"
        )


def without_tracking_secrets(text: str, tracking_uri: str | None) -> str:
    """What MLflow says, without the password of a server that it may quote."""
    for uri in (tracking_uri, os.environ.get("MLFLOW_TRACKING_URI")):
        text = without_secrets_of(uri or "", text)
    return text
