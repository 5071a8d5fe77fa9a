"""From what a spec says of the model to a folder on this machine, and what is in it.

A model is a folder, `owner/name` on the model hub, s3://bucket/prefix, or one of these that was
logged to MLflow. However it came here, it
is known by its content: the digest of the files that decide an answer. A hub's branch that moves,
or objects that were overwritten, are another model, and the same files in another place are not.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmflow.job.cache_folder import cache_folder
from vlmflow.job.errors import SpecError
from vlmflow.job.identity import model_digest
from vlmflow.job.loop import StopSignal
from vlmflow.job.model_cache import CachedModel, ModelCache
from vlmflow.job.progress import Display, Say
from vlmflow.job.registered_model import RegisteredModel, check_digest, fetch_weights
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import StoreOpener
from vlmflow.job.store.locate import is_s3, scheme, without_query
from vlmflow.job.stored_model import StoredModel
from vlmflow_engine.errors import ModelError
from vlmflow_engine.hub import commit_of, resolve_model

CACHE_VARIABLE = "VLMFLOW_MODEL_CACHE"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model on this machine."""

    path: Path
    digest: str
    origin: str  # for a sentence: where it is from, and which of several
    cached: CachedModel | None = None  # keeps a copy from being removed
    registered: dict[str, Any] | None = None  # which model of MLflow's registry it is


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """What is said of a model, and where on this machine it may be put."""

    model: str  # folder, owner/name, or s3://bucket/prefix
    revision: str | None = None
    require_pinned_revision: bool = False
    download_dir: str | None = None
    endpoint_url: str | None = None
    cache: str = ""


def find_model(
    spec: JobSpec,
    opener: StoreOpener,
    registered: RegisteredModel | None = None,
    *,
    display: Display,
    stop: StopSignal,
) -> ModelFolder:
    """Fetch the model if it is not here. Raises SpecError, StoreError, InterruptedJobError.

    registered  the model that a models:/ URI named, of which the spec was made
    """
    source = ModelSource(
        model=spec.model,
        revision=spec.engine.revision,
        require_pinned_revision=spec.engine.require_pinned_revision,
        download_dir=spec.engine.download_dir,
        endpoint_url=spec.endpoint_url,
        cache=spec.model_cache,
    )

    def is_stopped() -> bool:
        return stop.count > 0

    if registered is None:
        return find_checkpoint(source, opener, say=display.say, is_stopped=is_stopped)
    if registered.stored.has_weights:
        weights = fetch_weights(registered, spec.tracking.uri, _cache_of(source.cache))
        found = ModelFolder(weights, model_digest(str(weights)), spec.model)
        check_digest(registered.uri, str(weights), found.digest, registered.stored)
    else:
        found = find_stored(
            registered.stored, registered.uri, source, say=display.say, is_stopped=is_stopped
        )
    return replace(
        found, origin=f"{registered.shown}: {found.origin}", registered=registered.as_dict()
    )


def find_stored(
    stored: StoredModel,
    uri: str,
    source: ModelSource,
    *,
    say: Say,
    is_stopped: Callable[[], bool] = lambda: False,
) -> ModelFolder:
    """Find the checkpoint that an MLflow model refers to, and see that it is the same still.

    source  of which what was stored with the model is replaced. Raises as `find_model`.
    """
    source = replace(
        source,
        model=stored.reference,
        revision=stored.revision,
        endpoint_url=stored.endpoint_url,
    )
    try:
        opener = StoreOpener(stored.endpoint_url)
        found = find_checkpoint(source, opener, say=say, is_stopped=is_stopped)
    except SpecError as error:
        raise SpecError(
            f"model {uri!r} refers to a checkpoint that is not to be had here: {error}; a model "
            "logged from S3 or with --copy-weights is found from everywhere"
        ) from error
    check_digest(uri, found.origin, found.digest, stored)
    return found


def find_checkpoint(
    source: ModelSource, opener: StoreOpener, *, say: Say, is_stopped: Callable[[], bool]
) -> ModelFolder:
    """Fetch a checkpoint if it is not here. Raises as `find_model`."""
    kind = scheme(source.model)
    if kind not in ("", "s3"):
        raise SpecError(
            f"model {without_query(source.model)!r}: {kind}: is not supported; a model is a "
            "folder, owner/name on the model hub, s3://bucket/prefix, or models:/name/version of "
            "an MLflow registry"
        )
    if is_s3(source.model):
        cache = ModelCache(_cache_of(source.cache), say=say, is_stopped=is_stopped)
        store = opener.open(source.model)
        cached = cache.fetch(store, f"{store.uri} {source.endpoint_url or ''}")
        digest = model_digest(str(cached.folder))
        return ModelFolder(cached.folder, digest, store.uri, cached)
    try:
        path = resolve_model(
            source.model,
            source.download_dir,
            source.revision,
            require_pinned_revision=source.require_pinned_revision,
        )
    except ModelError as error:
        raise SpecError(str(error)) from error
    commit = commit_of(path)
    origin = f"{source.model} at commit {commit}" if commit else source.model
    return ModelFolder(path, model_digest(str(path)), origin)


def _cache_of(option: str) -> Path:
    named = option or os.environ.get(CACHE_VARIABLE)
    try:
        return Path(named).expanduser() if named else cache_folder("models")
    except RuntimeError as error:
        raise SpecError(
            "there is no home folder to keep models in; name a --model-cache"
        ) from error
