"""From a model's name to a folder: a local one as it is, else a snapshot of the model hub."""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vlmflow_engine.errors import ModelError

# What is read of a checkpoint: no code, and no pickles, which are code too.
_READ = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_NOT_READ = ["*/*"]  # folders hold the same model in other formats

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def resolve_model(model_path: str, download_dir: str | None, revision: str | None) -> Path:
    """Return the folder of a model, downloaded if it is not there. Raises ModelError.

    model_path    a local folder, or the hub's `owner/name`
    download_dir  holds snapshots of the hub; None: the hub's own cache
    revision      branch, tag or commit of the hub; None: main
    """
    folder = os.path.expanduser(model_path)
    if os.path.isdir(folder):
        return Path(folder)
    if os.path.exists(folder):
        raise ModelError(f"model {model_path!r} is a file; a model is a folder, or owner/name")
    if not _REPOSITORY.fullmatch(model_path):
        raise ModelError(
            f"model {model_path!r}: no such folder, and not a name of the model hub, which would "
            "be owner/name"
        )
    return Path(_download(model_path, download_dir, revision))


def _download(name: str, download_dir: str | None, revision: str | None) -> str:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelError(
            f"model {name!r}: no such folder, and no huggingface_hub to download it; "
            "pip install 'vlmflow[engine]'"
        ) from error
    try:
        return snapshot_download(
            name,
            revision=revision,
            cache_dir=download_dir,
            allow_patterns=_READ,
            ignore_patterns=_NOT_READ,
        )
    except Exception as error:  # of many classes, from the hub's and the HTTP library to OSError
        # Without a cause: its text, and so the traceback, may hold a signed URL.
        raise ModelError(
            f"model {name!r}: no such folder, and {_reason(error, revision)}"
        ) from None


def _reason(error: Exception, revision: str | None) -> str:
    """Say in our own words what went wrong with a download."""
    from huggingface_hub import constants, errors

    host = urlsplit(constants.ENDPOINT).hostname
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return "not a name that the model hub allows"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"on {host} its files are given only to who has asked for them; accept its terms "
            "there, and set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{host} has no such repository, or shows it to its members only (HF_TOKEN)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{host} has no revision {revision!r} of it"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set and it is not wholly in the cache; download it beforehand"
    if isinstance(error, errors.LocalEntryNotFoundError):
        cause: Any = error.__cause__
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is None:
            return f"{host} cannot be reached; copy the model here, or set HF_ENDPOINT to a mirror"
    if status is not None:
        return f"{host} answers with HTTP status {status}"
    if isinstance(error, OSError) and error.strerror:
        return f"the download cannot be stored: {error.strerror}"
    return f"its download from {host} failed ({type(error).__name__}); try again"
