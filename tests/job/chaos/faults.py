"""Faults, and how a job must end that meets them: the table of docs/reliability.md, as data."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.job.chaos.chaos_job import ChaosJob
from tests.job.faulty_s3 import (
    FaultyS3,
    cut,
    delay,
    do_but_refuse,
    dribble,
    lose_answer,
    refuse,
)
from tests.job.faulty_tcp import FaultyTcp

NO_WAITS: dict[str, Any] = {"vlmflow.job.record_fetches._DELAYS": [0.05, 0.1]}


@dataclass
class World:
    """What a fault may be put into."""

    job: ChaosJob
    s3: FaultyS3
    tcp: FaultyTcp


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and the end that it must come to."""

    name: str
    arrange: Callable[[World], object] = lambda world: None
    code: int = 0
    says: str = ""  # a part of what is said on standard error
    failed: dict[str, int] = field(default_factory=dict)  # by class, where the job comes to its end
    more: tuple[str, ...] = ()  # options
    environment: dict[str, str | None] = field(default_factory=dict)
    delays: dict[str, Any] = field(default_factory=lambda: NO_WAITS)
    limits: dict[str, Any] = field(default_factory=dict)
    lines: tuple[Any, ...] = ()  # in the manifest beside the good ones
    before: str = ""  # a point at which the job is killed before anything goes wrong
    way: str = "http"  # the proxy that the job goes through, or "tcp"; "folder": no S3 at all


def _put(where: str, fault: Any, times: int = 1) -> Callable[[World], None]:
    return lambda world: world.s3.next("PUT", fault, where=where, times=times)


def _always_put(where: str, fault: Any) -> Callable[[World], None]:
    return lambda world: world.s3.always("PUT", fault, where=where)


def _get(where: str, fault: Any, times: int = 1) -> Callable[[World], None]:
    return lambda world: world.s3.next("GET", fault, where=where, times=times)


def _always_get(where: str, fault: Any) -> Callable[[World], None]:
    return lambda world: world.s3.always("GET", fault, where=where)


def _tcp(**values: Any) -> Callable[[World], None]:
    def arrange(world: World) -> None:
        for name, value in values.items():
            setattr(world.tcp, name, value)

    return arrange


STORE_FAULTS = [
    Fault("busy for a moment", _put("commit-", refuse(503, "SlowDown"), 3)),
    Fault("throttled reads", _get(".png", refuse(429, "TooManyRequests"), 4)),
    Fault("throttled by name", _get(".png", refuse(400, "ThrottlingException"), 4)),
    Fault("internal error", _put("part-", refuse(500, "InternalError"), 3)),
    Fault(
        "busy for good",
        _always_put("commit-", refuse(503, "SlowDown")),
        code=75, says="S3 answers SlowDown",
    ),
    Fault("answers to commits are lost", _put("commit-", lose_answer, 3)),
    Fault("answers to parts are lost", _put("part-", lose_answer, 2)),
    Fault("the answer to a claim is lost", _put("claim-", lose_answer)),
    Fault("the answer to the plan is lost", _put("plan.json", lose_answer)),
    Fault("the answer to the seal is lost", _put("commit-00000006", lose_answer)),
    Fault(
        "a commit is made and refused",
        _put("commit-", do_but_refuse(412, "PreconditionFailed"), 2),
    ),
    Fault(
        "a commit is made and the store busy",
        _put("commit-", do_but_refuse(503, "SlowDown"), 2),
    ),
    Fault("conflicts", _put("commit-", refuse(409, "ConditionalRequestConflict"), 3)),
    Fault(
        "conflicts for good",
        _always_put("commit-", refuse(409, "ConditionalRequestConflict")),
        code=75, says="keeps reporting a conflict",
    ),
    Fault("bodies of images break off", _get(".png", cut(40), 3)),
    Fault(
        "the body of one image always breaks off",
        _always_get("/7.png", cut(40)),
        failed={"image_unreachable": 1},
    ),
    Fault("bodies come in dribbles", _get(".png", dribble(5, 0.05), 6)),
    Fault("an image is gone after it was listed", _get("/3.png", refuse(404, "NoSuchKey")),
          failed={"image_not_found": 1}),
    Fault(
        "an entry of the log is gone after it was listed",
        _always_get("commit-0000000", refuse(404, "NoSuchKey")),
        before="commit-created:2",
        code=75, says="but the store said that it does; try again",
    ),
    Fault("access to one image is denied", _always_get("/5.png", refuse(403, "AccessDenied")),
          failed={"image_forbidden": 1}),
    Fault(
        "access is denied in the middle",
        _always_put("commit-00000002", refuse(403, "AccessDenied")),
        code=2, says="access denied (AccessDenied)",
    ),
    Fault(
        "the heartbeat alone is refused",
        _always_put("heartbeat-", refuse(403, "AccessDenied")),
        before="commit-created",
        code=2, says="access denied (AccessDenied)",
    ),
    Fault(
        "credentials expire while commits are written",
        _always_put("commit-00000002", refuse(400, "ExpiredToken")),
        code=75, says="the credentials have expired (ExpiredToken)",
    ),
    Fault(
        "credentials expire while images are read",
        _always_get(".png", refuse(400, "ExpiredToken")),
        code=75, says="the credentials have expired (ExpiredToken)",
    ),
    Fault(
        "credentials are refused while images are read",
        _always_get(".png", refuse(403, "InvalidAccessKeyId")),
        code=2, says="the credentials are refused (InvalidAccessKeyId)",
    ),
    Fault(
        "the bucket is gone in the middle",
        _always_put("commit-00000002", refuse(404, "NoSuchBucket")),
        code=2, says="does not exist",
    ),
    Fault(
        "the store knows no conditional writes",
        _always_put("probe/", refuse(501, "NotImplemented")),
        says="creating an object is not atomic on this store",
    ),
    Fault(
        "a worker on a store without conditional writes",
        _always_put("probe/", refuse(501, "NotImplemented")),
        more=("--worker",),
        code=2, says="workers cannot share shards out among themselves",
    ),
    Fault("the store is slow", lambda world: world.s3.always("PUT", delay(0.05))),
    Fault("connections are reset", _tcp(reset_every=4), way="tcp"),
    Fault("the line is slow", _tcp(delay_seconds=0.02, bytes_per_second=200_000), way="tcp"),
    Fault("nobody is there", _tcp(is_cut=True), code=75, says="S3 does not answer", way="tcp"),
]  # fmt: skip

ENGINE_FAULTS = [
    Fault(
        "one record ends the engine",
        way="folder",
        lines=({"id": "poison", "prompt": "die"},),
        failed={"engine_died": 1}, says="the engine died (exit code 7)",
    ),
    Fault(
        "two records end the engine",
        way="folder",
        lines=({"id": "poison", "prompt": "die"}, {"id": "venom", "prompt": "die too"}),
        failed={"engine_died": 2},
    ),
    Fault(
        "one record hangs the engine",
        way="folder",
        lines=({"id": "poison", "prompt": "hang"},),
        limits={"engine_silence_seconds": 0.5},
        failed={"engine_died": 1}, says="the engine has been silent for",
    ),
    Fault(
        "a step fails on one record",
        way="folder",
        lines=({"id": "poison", "prompt": "fault"},),
        failed={"engine_fault": 1},
    ),
    Fault(
        "the engine dies while it loads",
        way="folder",
        environment={"FAKE_ENGINE_START": "die"},
        code=4, says="the engine died while it loaded the model (exit code 7)",
    ),
    Fault(
        "the engine has no memory",
        way="folder",
        environment={"FAKE_ENGINE_START": "kill"},
        code=4, says="the engine died while it loaded the model (killed by SIGKILL)",
    ),
    Fault(
        "the engine hangs while it loads",
        way="folder",
        environment={"FAKE_ENGINE_START": "hang"},
        limits={"engine_load_seconds": 0.3},
        code=4, says="the engine has been loading for",
    ),
    Fault(
        "there is no engine",
        way="folder",
        environment={"VLMFLOW_ENGINE_COMMAND": "/nonexistent/engine"},
        code=4, says="cannot start '/nonexistent/engine': No such file or directory",
    ),
    Fault(
        "too many records fail",
        way="folder",
        lines=tuple({"id": f"bad{n}", "prompt": "refuse"} for n in range(20)),
        limits={"min_records": 10},
        code=3, says="(prompt_too_long",
    ),
]  # fmt: skip


def wait_until(is_so: Callable[[], bool], seconds: float = 30.0) -> None:
    """Look again and again. Raises AssertionError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
