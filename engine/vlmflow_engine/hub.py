"""From a model's name to a folder: a local one as it is, else a snapshot of the model hub."""

import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vlmflow_engine.errors import ModelError

# What is read of a checkpoint: no code, and no pickles, which are code too, unless there is nothing
# else; then they are read by an unpickler that makes tensors alone.
_READ = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
_PICKLES = ("pytorch_model*.bin",)
# Folders hold the same model in other formats, and so does consolidated.safetensors.
_NOT_READ = ("*/*", ".*", "consolidated*", "adapter_*")
_WEIGHTS = ("model*.safetensors",)

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")


def resolve_model(
    model_path: str,
    download_dir: str | None,
    revision: str | None,
    *,
    require_pinned_revision: bool = False,
) -> Path:
    """Return the folder of a model, downloaded if it is not there. Raises ModelError.

    model_path               a local folder, or the hub's `owner/name`
    download_dir             holds snapshots of the hub; None: the hub's own cache
    revision                 branch, tag or commit of the hub; None: main
    require_pinned_revision  refuse a name of the hub without the full hash of a commit
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
    if require_pinned_revision and not _COMMIT.fullmatch(revision or ""):
        raise ModelError(
            f"model {model_path!r}: revision must be the full hash of a commit, 40 hexadecimal "
            f"digits, as require_pinned_revision asks; got {revision!r}"
        )
    return _download(model_path, download_dir, revision)


def files_to_read(names: Iterable[str]) -> list[str]:
    """Choose of a repository's files, named relative to it, those that a model is read from."""
    names = list(names)
    patterns = _READ if _choose(names, _WEIGHTS) else _READ + _PICKLES
    return _choose(names, patterns)


def commit_of(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache is a snapshot of; None for other folders."""
    is_snapshot = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return folder.name if is_snapshot else None


def _choose(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    def is_like(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return [name for name in names if is_like(name, patterns) and not is_like(name, _NOT_READ)]


def _download(name: str, download_dir: str | None, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelError(
            f"model {name!r}: no such folder, and no huggingface_hub to download it; "
            "pip install 'vlmflow[engine]'"
        ) from error

    def fetch(patterns: Sequence[str], revision: str | None) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                cache_dir=download_dir,
                allow_patterns=list(patterns),
                ignore_patterns=list(_NOT_READ),
            )
        )

    try:
        folder = fetch(_READ, revision)
        if not _choose(os.listdir(folder), _WEIGHTS):
            folder = fetch(_PICKLES, commit_of(folder) or revision)
        return folder
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
