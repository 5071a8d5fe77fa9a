"""A fetcher for tests: a word says what becomes of the process that fetches it."""

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

from PIL import Image

from tests.engine.inputs.pictures import encode, noise
from vlmflow_engine.errors import MediaFetchError

FILE = encode(noise(100, 100), "PNG")


class TeapotError(MediaFetchError):
    """A class that vlmflow_engine.errors does not know."""


def by_word(source: Any) -> bytes | Image.Image:
    """Give what is at hand, or FILE; the words below do harm, or wait for a file to be there.

    die, crash, leave     the process ends by SIGKILL, by a segmentation fault, with exit code 3
    sleep, spin           it takes an hour, doing nothing or a lot
    huge                  it wants more memory than any picture needs
    gone, teapot, bug     an error of the request, of a class of its own, a fault of ours
    wait:PATH             as soon as PATH is there
    meet:PATH:OTHER       makes PATH, and is there as soon as OTHER is
    """
    if isinstance(source, bytes | Image.Image):
        return source
    word, *paths = str(source).split(":")
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "crash":
        ctypes.string_at(0)
    elif word == "leave":
        os._exit(3)
    elif word == "sleep":
        time.sleep(3600)
    elif word == "spin":
        while True:
            pass
    elif word == "huge":
        bytearray(6 << 30)
    elif word == "gone":
        raise MediaFetchError("scene.png is gone")
    elif word == "teapot":
        raise TeapotError("short and stout")
    elif word == "bug":
        raise KeyError("the contents of a secret file")
    elif word == "meet":
        Path(paths[0]).touch()
    deadline = time.monotonic() + 60
    while word in ("wait", "meet") and not Path(paths[-1]).exists():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return FILE
