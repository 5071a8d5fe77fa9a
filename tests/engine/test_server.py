"""The engine as a child process, spoken to over its socket."""

import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from vlmflow_engine import GenerationConfig, PytorchEngineConfig, pipeline
from vlmflow_engine.wire import FrameSocket

CONFIG = {"dtype": "float32", "device_type": "cpu"}


class Server:
    """A child and our end of the socket."""

    def __init__(self, model: str, config: dict, **more: str) -> None:
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vlmflow_engine.server", "--fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        self.link = FrameSocket(ours)
        self.link.send({"type": "start", "model": model, "config": config, **more})

    def next(self, kind: str) -> dict:
        while True:
            frame = self.link.receive()
            if frame["type"] == kind:
                return frame

    def ask(self, ticket: int, prompt, images=(), **generation) -> None:
        self.link.send(
            {
                "type": "request",
                "ticket": ticket,
                "prompt": prompt,
                "images": list(images),
                "generation": generation,
            }
        )


@pytest.fixture(scope="module")
def start():
    """Starts servers and sees to their end."""
    with contextlib.ExitStack() as stack:

        def start(model, config=None, **more) -> Server:
            server = Server(str(model), CONFIG | (config or {}), **more)
            stack.callback(server.link.close)
            stack.callback(server.process.wait)
            stack.callback(server.process.kill)
            return server

        yield start


@pytest.fixture(scope="module")
def server(start, tiny_llava) -> Server:
    """One that is ready, for the tests that leave it so."""
    server = start(tiny_llava)
    server.next("ready")
    return server


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (96, 96, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def message(text: str, num_images: int = 0) -> list[dict]:
    images = [{"type": "image", "image": {"$image": index}} for index in range(num_images)]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def test_answers_over_the_socket_equal_those_of_a_pipeline(start, tiny_llava):
    server = start(tiny_llava)
    ready = server.next("ready")
    assert ready["info"]["dtype"] == "float32"
    assert ready["credit_bytes"] > 0 and ready["credit_requests"] >= 64
    for ticket in range(6):
        server.ask(ticket, message(f"what {ticket}", 1), [png(ticket % 2)], max_new_tokens=5)
    results = {}
    while len(results) < 6:
        frame = server.next("result")
        results[frame["ticket"]] = frame
    server.link.send({"type": "stop"})
    assert server.next("stats")["stats"]["num_finished"] == 6
    assert server.process.wait(timeout=60) == 0
    with pipeline(str(tiny_llava), backend_config=PytorchEngineConfig(**CONFIG)) as pipe:
        prompts = [(f"what {ticket}", png(ticket % 2)) for ticket in range(6)]
        expected = pipe(prompts, GenerationConfig(max_new_tokens=5))
    assert [results[t]["response"]["text"] for t in range(6)] == [r.text for r in expected]
    assert all(results[t]["error"] is None for t in range(6))


def test_who_has_the_last_answer_has_the_counts_of_all(start, tiny_llava):
    server = start(tiny_llava)
    info = server.next("ready")["info"]
    assert info["torch_version"] and info["transformers_version"] and info["device_name"]
    for ticket in range(4):
        server.ask(ticket, message("what", 1), [png(ticket)], max_new_tokens=5)
    num_answers, stats = 0, {}
    while num_answers < 4:
        frame = server.link.receive()
        num_answers += frame["type"] == "result"
        stats = frame.get("stats", stats)
    assert (stats["num_finished"], stats["num_encoded_images"]) == (4, 4)
    parts = [stats[f"{name}_seconds"] for name in ("vision", "prefill", "decode")]
    assert min(parts) > 0 and sum(parts) == pytest.approx(stats["busy_seconds"])
    assert stats["preprocess_wait_seconds"] > 0


def test_a_bad_request_is_answered_and_the_next_one_too(server):
    server.ask(0, message("x", 1), [b"no picture"])
    server.ask(1, message("x"), max_new_tokens=-3)
    server.ask(2, message("x", 2), [png(0)])
    server.ask(3, [{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}])
    server.ask(4, message("x"), max_new_tokens=2)
    frames = [server.next("result") for _ in range(5)]
    errors = {frame["ticket"]: frame["error"] for frame in frames}
    assert errors[0]["class"] == "image_corrupt" and errors[0]["stage"] == "decode"
    assert errors[1]["class"] == errors[2]["class"] == "invalid_request"
    assert errors[3]["stage"] == "fetch", "a path must not be read: only what was sent is"
    assert errors[4] is None


def test_a_model_that_cannot_be_loaded_is_told_in_a_frame(start, tmp_path):
    server = start(tmp_path)
    assert "no config.json here" in server.next("failed")["message"]
    assert server.process.wait(timeout=60) == 1


def test_a_template_is_chosen_by_what_the_user_calls_the_model(start, tiny_llava, tmp_path):
    folder = tmp_path / "snapshot"
    shutil.copytree(tiny_llava, folder, ignore=shutil.ignore_patterns("chat_template*"))
    assert "chat template" in start(folder).next("failed")["message"]
    assert start(folder, model_name="owner/vicuna-tiny").next("ready")


def test_an_unknown_option_is_told_in_a_frame(start, tiny_llava):
    server = start(tiny_llava, {"colour": "red"})
    assert "colour" in server.next("failed")["message"]


def test_an_idle_server_shows_that_it_lives(server):
    start_time = time.monotonic()
    for _ in range(3):
        server.next("stats")
    assert time.monotonic() - start_time < 60


def test_it_ends_when_its_parent_is_gone(start, tiny_llava):
    server = start(tiny_llava)
    server.link.close()  # even before it has loaded the model
    assert server.process.wait(timeout=60) == 1


def test_a_ctrl_c_on_the_terminal_is_not_for_it(server):
    os.kill(server.process.pid, signal.SIGINT)
    server.ask(0, message("x"), max_new_tokens=2)
    assert server.next("result")["error"] is None
