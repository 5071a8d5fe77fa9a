"""A preprocessing worker: `python -m vlmflow_engine.inputs.worker --fd N --parent PID`.

Frames: `worker_frames.py`. What a hostile image can do to a decoder, it does here: this process has
limits of its own, and its death costs one prompt. The parent's death is seen as the end of the
stream, and then this process ends at once.
"""

import argparse
import logging
import os
import queue
import resource
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlmflow_engine.errors import VlmflowError
from vlmflow_engine.inputs.builder import InputBuilder
from vlmflow_engine.inputs.preprocessor import attempt
from vlmflow_engine.inputs.prompts import PromptOptions
from vlmflow_engine.inputs.worker_frames import BuilderSpec, PackedPrompt, result_frame
from vlmflow_engine.wire import ConnectionClosedError, FrameSocket

CPU_SECONDS = 60  # of one prompt; what is fetched meanwhile costs none
_PIXEL_CACHE_BYTES = 24 << 20
# What a worker needs for itself (a vocabulary of 250,000 takes 500 MB to load), and what is alive
# of a picture with transparency, in units of four bytes: itself, background, both, RGB, file.
_BASE_BYTES = 1 << 30
_BYTES_PER_PIXEL = 24
_LOOK_SECONDS = 2.0

_Frames = queue.SimpleQueue[dict[str, Any]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vlmflow_engine.inputs.worker")
    parser.add_argument("--fd", type=int, required=True, help="descriptor of the socket")
    parser.add_argument("--parent", type=int, required=True, help="process id of who starts it")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="worker: %(message)s", stream=sys.stderr)
    # The parent decides when to end; a Ctrl-C on its terminal is its own affair.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = FrameSocket(socket.socket(fileno=options.fd))
    frames: _Frames = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(link, frames), daemon=True).start()
    start = frames.get()
    try:
        spec = BuilderSpec.from_frame(start)
        _limit_memory(spec.max_image_pixels)
        builder = spec.make(pixel_cache_bytes=_PIXEL_CACHE_BYTES)
    except (VlmflowError, ImportError, AttributeError, TypeError) as error:
        link.send({"type": "failed", "message": str(error)})
        return 1
    try:
        link.send({"type": "ready"})
        _serve(link, frames, builder, options.parent)
    except ConnectionClosedError:
        return 1
    return 0


def _serve(link: FrameSocket, frames: _Frames, builder: InputBuilder, parent: int) -> None:
    """Prepare one prompt after the other, until the parent is gone."""
    while True:
        try:
            frame = frames.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            # A fork of the parent may hold the stream open after its end.
            if os.getppid() != parent:
                return
            continue
        _limit_cpu()
        link.send(_answer(builder, frame))
        del frame  # it may be large, and the next one may take its time


def _answer(builder: InputBuilder, frame: dict[str, Any]) -> dict[str, Any]:
    packed = PackedPrompt(frame["body"], frame["pictures"])
    request_id = frame["request_id"]
    return result_frame(
        request_id,
        attempt(
            request_id, lambda: builder.build(packed.unpack(), PromptOptions(**frame["options"]))
        ),
    )


def _limit_memory(max_image_pixels: int) -> None:
    """Turn an allocation beyond all reason into a MemoryError, or an end that the parent sees."""
    limit = _BASE_BYTES + _BYTES_PER_PIXEL * max_image_pixels
    _lower(resource.RLIMIT_DATA, limit)
    _lower(resource.RLIMIT_CORE, 0)
    with suppress(OSError):  # when the machine runs out, let the kernel take us and not the engine
        Path("/proc/self/oom_score_adj").write_text("800")


def _limit_cpu() -> None:
    """Let the kernel end this process when a prompt takes too long, whatever it is in."""
    _lower(resource.RLIMIT_CPU, int(time.process_time()) + 1 + CPU_SECONDS)


def _lower(kind: int, limit: int) -> None:
    """Set the limit, below the one that the machine's owner has set."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _receive(link: FrameSocket, frames: _Frames) -> None:
    try:
        while True:
            frames.put(link.receive())
    finally:  # the end of the stream, or a prompt for which there is no memory
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
