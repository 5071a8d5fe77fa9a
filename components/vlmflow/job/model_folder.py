"""From what a spec says of the model to a folder on this machine, and what is in it.

A model is a folder, `owner/name` on the model hub, or s3://bucket/prefix. However it came here, it
is known by its content: the digest of the files that decide an answer. A hub's branch that moves,
or objects that were overwritten, are another model, and the same files in another place are not.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from vlmflow.job.cache_folder import cache_folder
from vlmflow.job.errors import SpecError
from vlmflow.job.identity import model_digest
from vlmflow.job.loop import StopSignal
from vlmflow.job.model_cache import CachedModel, ModelCache
from vlmflow.job.progress import Display
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import StoreOpener
from vlmflow.job.store.locate import is_s3, scheme, without_query
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


def find_model(
    spec: JobSpec, opener: StoreOpener, *, display: Display, stop: StopSignal
) -> ModelFolder:
    """Fetch the model if it is not here. Raises SpecError, StoreError, InterruptedJobError."""
    kind = scheme(spec.model)
    if kind not in ("", "s3"):
        raise SpecError(
            f"model {without_query(spec.model)!r}: {kind}: is not supported; a model is a folder, "
            "owner/name on the model hub, or s3://bucket/prefix"
        )
    if is_s3(spec.model):
        cache = ModelCache(_cache_of(spec), say=display.say, is_stopped=lambda: stop.count > 0)
        store = opener.open(spec.model)
        cached = cache.fetch(store, f"{store.uri} {spec.endpoint_url or ''}")
        digest = model_digest(str(cached.folder))
        return ModelFolder(cached.folder, digest, store.uri, cached)
    engine = spec.engine
    try:
        path = resolve_model(
            spec.model,
            engine.download_dir,
            engine.revision,
            require_pinned_revision=engine.require_pinned_revision,
        )
    except ModelError as error:
        raise SpecError(str(error)) from error
    commit = commit_of(path)
    origin = f"{spec.model} at commit {commit}" if commit else spec.model
    return ModelFolder(path, model_digest(str(path)), origin)


def _cache_of(spec: JobSpec) -> Path:
    named = spec.model_cache or os.environ.get(CACHE_VARIABLE)
    try:
        return Path(named).expanduser() if named else cache_folder("models")
    except RuntimeError as error:
        raise SpecError(
            "there is no home folder to keep models in; name a --model-cache"
        ) from error
