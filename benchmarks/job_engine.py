"""An engine that answers at once: what is left of a job's time is the job's own."""

import argparse
import queue
import socket
import threading
from typing import Any

from vlmflow_engine.wire import ConnectionClosedError, FrameSocket

_INFO = {
    "device": "none",
    "dtype": "float32",
    "attention_backend": "none",
    "session_len": 1024,
    "max_batch_size": 256,
    "num_blocks": 1,
    "block_size": 1,
    "kv_cache_bytes": 0,
    "quant_policy": 0,
    "device_name": "none",
    "python_version": "",
    "torch_version": "",
    "transformers_version": "",
}
_RESPONSE = {
    "text": "an answer of about as many letters as a caption has, forty or so of them",
    "finish_reason": "stop",
    "input_token_len": 40,
    "generate_token_len": 16,
    "cached_tokens": 0,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    link = FrameSocket(socket.socket(fileno=parser.parse_args().fd))
    link.receive()
    link.send({"type": "ready", "info": _INFO, "credit_bytes": 256 << 20, "credit_requests": 1024})
    frames: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(link, frames), daemon=True).start()
    while (frame := frames.get()) is not None:
        batch = [frame]
        while not frames.empty() and len(batch) < 256:
            more = frames.get()
            if more is None:
                return
            batch.append(more)
        if any(frame["type"] == "stop" for frame in batch):
            return
        link.send(*[_answer(frame) for frame in batch])


def _receive(link: FrameSocket, frames: "queue.SimpleQueue[dict[str, Any] | None]") -> None:
    try:
        while True:
            frames.put(link.receive())
    except ConnectionClosedError:
        frames.put(None)


def _answer(frame: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "result",
        "ticket": frame["ticket"],
        "seconds": 0.01,
        "response": _RESPONSE,
        "error": None,
    }


if __name__ == "__main__":
    main()
