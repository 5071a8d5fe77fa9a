"""A file that goes away with the object that holds it."""

import os
import tempfile
import weakref
from pathlib import Path


class TemporaryPath:
    """An empty file; removed when nobody holds this any more, or at the interpreter's end."""

    def __init__(self) -> None:
        handle, name = tempfile.mkstemp(prefix="vlmflow-")
        os.close(handle)
        self.path = Path(name)
        weakref.finalize(self, _remove, name)


def _remove(name: str) -> None:
    Path(name).unlink(missing_ok=True)
