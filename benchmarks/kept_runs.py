"""Measurements on disk: a benchmark that was killed goes on where it was."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

Measurement = dict[str, Any]


class KeptRuns:
    """A file a measurement, in a folder for this state of the sources."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def get(self, name: str) -> Measurement | None:
        """What was measured under this name, if it was."""
        path = self._folder / f"{name}.json"
        if not path.is_file():
            return None
        found: Measurement = json.loads(path.read_text(encoding="utf-8"))
        return found

    def get_or_make(self, name: str, make: Callable[[], Measurement]) -> Measurement:
        """Measure, unless that was done. What is half done leaves nothing."""
        found = self.get(name)
        if found is None:
            found = make()
            path = self._folder / f"{name}.json"
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(found), encoding="utf-8")
            os.replace(partial, path)
        return found

    def forget(self) -> None:
        """Measure everything anew."""
        for path in self._folder.glob("*.json"):
            path.unlink()


def commit() -> str:
    """The sources' commit, with a digest of what is not committed."""
    name = _git("rev-parse", "--short", "HEAD").strip() or "unknown"
    changed = _git("diff", "HEAD", "--", "engine", "components", "benchmarks", "constraints")
    if not changed:
        return name
    return f"{name}-{hashlib.sha256(changed.encode()).hexdigest()[:8]}"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout
