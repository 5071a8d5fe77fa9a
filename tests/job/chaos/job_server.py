"""Starts `vlmflow` processes quickly: it has imported everything, and forks.

    python job_server.py

A line of JSON on standard input is an order, a line on standard output the answer:

    {"start": [arguments], "environment": {...}, "log": path,     {"pid": 123}
     "delays": {"module.NAME": seconds}}
    {"wait": pid, "seconds": 60}                                  {"code": 0}, or null in time

A fork is a process of its own, to be killed as any other; it only need not load boto3 again.
"""

import importlib
import json
import os
import signal
import sys
import time
import types

# For the forks.
import boto3  # noqa: F401
import botocore.endpoint
import pydantic  # noqa: F401

import vlmflow.cli.summary
import vlmflow.job.merge
import vlmflow.job.run
import vlmflow.job.store.s3  # noqa: F401
from vlmflow.cli import main


def serve() -> None:
    started = set()
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            answer = {"pid": start(order)}
            started.add(answer["pid"])
        else:
            answer = {"code": wait(order["wait"], order["seconds"])}
            if answer["code"] is not None:
                started.discard(order["wait"])
        print(json.dumps(answer), flush=True)
    for pid in started:
        os.kill(pid, signal.SIGKILL)


def start(order: dict) -> int:
    pid = os.fork()
    if pid:
        return pid
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  # with nothing of ours in it
    for name, value in order["environment"].items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    for name, seconds in order["delays"].items():
        module, _, attribute = name.rpartition(".")
        setattr(importlib.import_module(module), attribute, seconds)
    if order["delays"]:
        # Between the tries of a request, botocore would sleep for up to 20 s.
        botocore.endpoint.time = types.SimpleNamespace(sleep=lambda seconds: None)
    sys.exit(main(order["start"]))


def wait(pid: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)


if __name__ == "__main__":
    serve()
