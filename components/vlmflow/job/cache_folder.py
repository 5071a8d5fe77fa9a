"""Where the job keeps on this machine what it would otherwise fetch or compute again."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A name below vlmflow/ in the user's cache folder. Raises RuntimeError if there is no home."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vlmflow" / name
