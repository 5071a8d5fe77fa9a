"""The engine as a child process: `python -m vlmflow_engine.server --fd N`. Frames: `wire.py`.

The parent's death is seen as the end of the stream, and then this process ends at once: nobody is
left to take an answer.
"""

import argparse
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import InvalidRequestError, VlmflowError
from vlmflow_engine.generation import GenerationConfig
from vlmflow_engine.heap import keep_freed_memory, objects_that_stay
from vlmflow_engine.wire import IMAGE_KEY, ConnectionClosedError, FrameSocket

with objects_that_stay():
    from vlmflow_engine.answers import Answer, error_response
    from vlmflow_engine.driver import DriverOptions, RequestDriver

_log = logging.getLogger("vlmflow_engine.server")

_CREDIT_BYTES = 256 << 20
_STATS_SECONDS = 0.5


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vlmflow_engine.server")
    parser.add_argument("--fd", type=int, required=True, help="descriptor of the socket")
    descriptor: int = parser.parse_args(arguments).fd
    logging.basicConfig(level=logging.INFO, format="engine: %(message)s", stream=sys.stderr)
    # The parent decides when to end; a Ctrl-C on its terminal is its own affair.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = FrameSocket(socket.socket(fileno=descriptor))
    frames: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(link, frames), daemon=True).start()
    try:
        start = frames.get()
        config = PytorchEngineConfig(**start["config"])
        options = DriverOptions(
            start["model"], config, model_name=start.get("model_name"), is_fetching=False
        )
        driver = RequestDriver(options)
    except (VlmflowError, TypeError) as error:
        link.send({"type": "failed", "message": str(error)})
        return 1
    keep_freed_memory()
    link.send(
        {
            "type": "ready",
            "info": asdict(driver.info),
            "credit_bytes": _CREDIT_BYTES,
            "credit_requests": 4 * driver.info.max_batch_size,
        }
    )
    try:
        _serve(link, frames, driver)
    except ConnectionClosedError:
        return 1
    finally:
        driver.close()
    return 0


def _serve(
    link: FrameSocket, frames: "queue.SimpleQueue[dict[str, Any]]", driver: RequestDriver
) -> None:
    is_stopping, last_stats = False, 0.0
    while not (is_stopping and driver.num_in_flight == 0):
        is_idle = driver.num_in_flight == 0
        try:
            frame = frames.get(block=is_idle, timeout=_STATS_SECONDS)
        except queue.Empty:
            pass
        else:
            if frame["type"] == "stop":
                is_stopping = True
            elif (refused := _submit(driver, frame)) is not None:
                link.send(refused)
            if not frames.empty():
                continue  # take all that has come before the next step
        answers = driver.step()
        # Before the last answers: who has them all has the counts of all.
        is_last = bool(answers) and driver.num_in_flight == 0
        if is_last or time.monotonic() - last_stats >= _STATS_SECONDS:
            last_stats = time.monotonic()
            link.send({"type": "stats", "stats": driver.stats.as_dict()})
        if answers:
            link.send(*[_result(a) for a in answers if isinstance(a, Answer)])  # none is streamed
    link.send({"type": "stats", "stats": driver.stats.as_dict()})


def _submit(driver: RequestDriver, frame: dict[str, Any]) -> dict[str, Any] | None:
    """Hand a request to the driver; return a result if it is refused at the door."""
    try:
        generation = GenerationConfig(**frame["generation"])
        prompt = _put_images(frame["prompt"], frame["images"])
    except (VlmflowError, TypeError, IndexError) as error:
        refusal = InvalidRequestError(f"the request cannot be read: {error}")
        return _result(Answer(frame["ticket"], error_response(refusal), refusal, 0.0))
    driver.submit(frame["ticket"], prompt, generation)
    return None


def _put_images(prompt: Any, images: list[bytes]) -> Any:
    """Replace each {"$image": k} of a prompt by the bytes that came with it."""
    if isinstance(prompt, dict):
        if IMAGE_KEY in prompt:
            return images[prompt[IMAGE_KEY]]
        return {key: _put_images(value, images) for key, value in prompt.items()}
    if isinstance(prompt, list):
        return [_put_images(item, images) for item in prompt]
    return prompt


def _result(answer: Answer) -> dict[str, Any]:
    response, error = answer.response, answer.error
    return {
        "type": "result",
        "ticket": answer.ticket,
        "seconds": answer.seconds,
        "times": answer.times,
        "response": {
            "text": response.text,
            "finish_reason": response.finish_reason,
            "input_token_len": response.input_token_len,
            "generate_token_len": response.generate_token_len,
            "cached_tokens": response.cached_tokens,
        },
        "error": error
        and {
            "stage": error.stage,
            "class": error.error_class,
            "message": str(error),
            "retryable": error.retryable,
        },
    }


def _receive(link: FrameSocket, frames: "queue.SimpleQueue[dict[str, Any]]") -> None:
    try:
        while True:
            frames.put(link.receive())
    except ConnectionClosedError:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
