"""A command's parts: each is kept as soon as it is done, so that the next call goes on from there.

    {"environment": {...}, "parts": {"decode": {"at": ..., "seconds": ..., "result": {...}}}}

A part that fails is kept with its error, does not stop the others and is tried again by a resume.
"""

import json
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.device import Environment

Result = dict[str, Any]  # JSON


class Parts:
    """The parts of one command and the file that they are kept in."""

    def __init__(
        self,
        path: Path,
        environment: Environment,
        *,
        is_resumed: bool,
        minutes: float,
        only: Sequence[str] | None = None,
    ) -> None:
        """Raises SystemExit if what is to be gone on with was measured on another device."""
        self.path = path
        self.environment = environment
        self.left: list[str] = []  # for another call: there was no time
        self._only = only
        self._deadline = time.monotonic() + 60 * minutes
        self._parts: dict[str, Result] = {}
        if is_resumed and path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            device = kept["environment"]["device"]
            if device != environment.device:
                raise SystemExit(
                    f"{path} was measured on {device!r}, and this is {environment.device!r}; "
                    "begin anew without --resume"
                )
            self._parts = {name: part for name, part in kept["parts"].items() if "result" in part}

    @property
    def seconds_left(self) -> float:
        """Until the time of this call is over."""
        return self._deadline - time.monotonic()

    def run(self, name: str, compute: Callable[[], Result], seconds: float = 0.0) -> Result | None:
        """Compute a part, or take it as it was kept. None: it failed, or is left out.

        seconds  that it takes, about; it is left for another call if fewer are left
        """
        if self._only is not None and not name.startswith(tuple(self._only)):
            return None
        if name in self._parts:
            print(f"{name}: kept from {self._parts[name]['at']}", flush=True)
            return self.result(name)
        if self.seconds_left < seconds:
            self.left.append(name)
            return None
        print(f"{name} ...", flush=True)
        start = time.perf_counter()
        part: Result = {"at": _now(), "commit": self.environment.commit}
        try:
            part["result"] = compute()
        except Exception as error:
            traceback.print_exc()
            part["error"] = f"{type(error).__name__}: {error}".strip()[:2000]
        part["seconds"] = round(time.perf_counter() - start, 3)
        self._parts[name] = part
        self._write()
        print(f"{name}: {part['seconds']:.1f} s{', FAILED' if 'error' in part else ''}", flush=True)
        return self.result(name)

    def result(self, name: str) -> Result | None:
        """What a part has found; None if it has not been run, or failed."""
        found: Result | None = self._parts.get(name, {}).get("result")
        return found

    @property
    def results(self) -> dict[str, Result]:
        """Of all finished parts."""
        return {name: part["result"] for name, part in self._parts.items() if "result" in part}

    @property
    def failed(self) -> dict[str, str]:
        """Why parts failed, by name."""
        return {name: part["error"] for name, part in self._parts.items() if "error" in part}

    def close(self, table: str) -> int:
        """Print the table and what is missing in it, last; return the process's exit code."""
        print(f"\n{table.rstrip()}\n\n{self.environment.sentence()}\nAll numbers: {self.path}")
        for name, error in self.failed.items():
            print(f"failed: {name}: {error.splitlines()[0]}")
        if self.left:
            print(f"no time for: {', '.join(self.left)}; call again with --resume")
        return 1 if self.failed or self.left else 0

    def _write(self) -> None:
        content = {"environment": asdict(self.environment), "parts": self._parts}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.replace(draft, self.path)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
