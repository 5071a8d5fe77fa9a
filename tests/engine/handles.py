"""What a process holds that outlives a Python object: children, threads, descriptors, segments."""

import os
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Handles:
    children: frozenset[int]  # process ids, zombies and grandchildren included
    threads: frozenset[str]  # names
    descriptors: Counter[str]  # what each leads to
    segments: frozenset[str]  # files in shared memory, whoever has made them

    @classmethod
    def now(cls) -> "Handles":
        return cls(
            children=frozenset(child.pid for child in psutil.Process().children(recursive=True)),
            threads=frozenset(f"{thread.name} {thread.ident}" for thread in threading.enumerate()),
            descriptors=Counter(_targets()),
            segments=frozenset(path.name for path in SHARED_MEMORY.iterdir()),
        )

    def new_since(self, before: "Handles") -> list[str]:
        """What there is now and was not then, in words."""
        new = {
            "child": self.children - before.children,
            "thread": self.threads - before.threads,
            "descriptor": (self.descriptors - before.descriptors).elements(),
            "segment": self.segments - before.segments,
        }
        return [f"{kind} {item}" for kind, items in new.items() for item in items]


def left_since(before: Handles, *, patience_seconds: float = 5.0) -> list[str]:
    """What has come since and stays; other processes make segments too, and drop them again."""
    deadline = time.monotonic() + patience_seconds
    while (left := Handles.now().new_since(before)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _targets() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # the one that reads the list
            continue
    return found
