"""An engine without a model, speaking vlmflow_engine.wire: `python fake_engine.py --fd N`.

Its answers are a function of prompt, images and seed alone. A prompt's words make it misbehave:

    die      ends the process at once            fault    answers with a retryable error
    hang     never answers, never beats          refuse   answers with an error of the prompt

FAKE_ENGINE_SECONDS is the time an answer takes, FAKE_ENGINE_LOG a file that gets a line for each;
FAKE_ENGINE_START makes it die, kill itself or hang while it loads.
"""

import argparse
import hashlib
import json
import os
import queue
import signal
import socket
import threading
import time

from vlmflow_engine.wire import ConnectionClosedError, FrameSocket

INFO = {
    "device": "cpu",
    "dtype": "float32",
    "attention_backend": "fake",
    "session_len": 1024,
    "max_batch_size": 16,
    "num_blocks": 1,
    "block_size": 1,
    "kv_cache_bytes": 0,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    link = FrameSocket(socket.socket(fileno=parser.parse_args().fd))
    start = link.receive()
    misbehave_at_start(os.environ.get("FAKE_ENGINE_START", ""))
    if "broken" in start["model"]:
        link.send({"type": "failed", "message": "the model is broken"})
        return
    dtype = start["config"]["dtype"]
    info = INFO | {
        "dtype": "float32" if dtype == "auto" else dtype,
        "quant": start["config"].get("quant"),
        "quant_policy": start["config"].get("quant_policy", 0),
    }
    link.send({"type": "ready", "info": info, "credit_bytes": 1 << 20, "credit_requests": 64})
    frames: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=receive, args=(link, frames), daemon=True).start()
    seconds = float(os.environ.get("FAKE_ENGINE_SECONDS", "0"))
    num_done = 0
    while True:
        frame = frames.get()
        if frame["type"] == "stop":
            return
        time.sleep(seconds)
        num_done += 1
        result = answer(frame)
        link.send({"type": "stats", "stats": stats(num_done)}, result)


def misbehave_at_start(how: str) -> None:
    if how == "die":
        os._exit(7)
    if how == "kill":  # as the kernel does when memory is short
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(3600)


def receive(link: FrameSocket, frames: queue.SimpleQueue) -> None:
    try:
        while True:
            frames.put(link.receive())
    except ConnectionClosedError:
        os._exit(1)


def answer(frame: dict) -> dict:
    text = json.dumps(frame["prompt"], sort_keys=True)
    log = os.environ.get("FAKE_ENGINE_LOG")
    if log:
        with open(log, "a") as file:
            file.write(f"{frame['ticket']}\n")
    if "die" in text:
        os._exit(7)
    if "hang" in text:
        time.sleep(3600)
    error = None
    if "fault" in text:
        error = {"stage": "generate", "class": "engine_fault", "message": "x", "retryable": True}
    if "refuse" in text:
        error = {
            "stage": "prepare", "class": "prompt_too_long", "message": "too long",
            "retryable": False,
        }  # fmt: skip
    digest = hashlib.sha256(text.encode())
    for image in frame["images"]:
        digest.update(image)
    digest.update(str(frame["generation"].get("random_seed")).encode())
    return {
        "type": "result",
        "ticket": frame["ticket"],
        "seconds": 0.01,
        "response": {
            "text": digest.hexdigest()[:12],
            "finish_reason": "stop",
            "input_token_len": 10,
            "generate_token_len": 3,
            "cached_tokens": 2,
        },
        "error": error,
    }


def stats(num_done: int) -> dict:
    return {
        "num_steps": num_done,
        "sum_running": 8 * num_done,
        "max_batch_size": 16,
        "num_prefill_tokens": 8 * num_done,
        "num_output_tokens": 3 * num_done,
        "vision_seconds": 1e-4 * num_done,
        "prefill_seconds": 2e-4 * num_done,
        "decode_seconds": 3e-4 * num_done,
        "kv_usage": 0.25,
        "prefix_query_tokens": 10 * num_done,
        "prefix_hit_tokens": 2 * num_done,
        "encoder_queries": num_done,
        "encoder_hits": 0,
    }


if __name__ == "__main__":
    main()
