"""What goes wrong outside of a job, one thing at a time: the end it comes to, and the next try."""

import json
import os
import re
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.job.chaos.chaos_job import ChaosJob, JobServer
from tests.job.chaos.faults import ENGINE_FAULTS, NO_WAITS, STORE_FAULTS, Fault, World, wait_until
from tests.job.faulty_s3 import Exchange, FaultyS3, delay, refuse
from tests.job.faulty_tcp import FaultyTcp
from tests.job.jobs import committed_ordinals, read_lines
from vlmflow.job.store import StoreOpener

pytestmark = pytest.mark.process

NUM_IMAGES = 24
PICTURE = b"a picture, as far as a job can tell" * 4


@pytest.fixture(scope="session")
def images(s3_client: Any) -> str:
    """A bucket with pictures."""
    name = f"images-{uuid4().hex}"
    s3_client.create_bucket(Bucket=name)
    for number in range(NUM_IMAGES):
        s3_client.put_object(Bucket=name, Key=f"{number}.png", Body=b"%d" % number + PICTURE)
    return name


@pytest.fixture
def faulty_tcp(s3_endpoint):
    with FaultyTcp(s3_endpoint) as way:
        yield way


@pytest.fixture
def make_world(job_server: JobServer, faulty_s3: FaultyS3, faulty_tcp, images, tmp_path: Path):
    """A job that reads pictures from S3 and writes to S3, each through what goes wrong."""

    def make(fault: Fault) -> World:
        is_local = fault.way == "folder"
        lines = [
            {"id": f"r{n}", "prompt": f"question {n}"}
            | ({} if is_local else {"images": [f"s3://{images}/{n}.png"]})
            for n in range(NUM_IMAGES)
        ]
        job = ChaosJob(
            job_server,
            tmp_path / "job",
            str(tmp_path / "out") if is_local else f"s3://{images}/out-{uuid4().hex}",
            lines=[*lines[:12], *fault.lines, *lines[12:]],
            endpoint={"http": faulty_s3.url, "tcp": faulty_tcp.url, "folder": None}[fault.way],
            environment=fault.environment,
            delays=fault.delays,
            limits=fault.limits,
            allowed_s3=[f"s3://{images}"],
        )
        return World(job, faulty_s3, faulty_tcp)

    return make


def failed_classes(job: ChaosJob) -> dict[str, int]:
    classes = [x["error"]["class"] for x in read_lines(f"{job.output}/m", "failures", job.endpoint)]
    return {name: classes.count(name) for name in classes}


def check_complete(world: World, failed: dict[str, int]) -> None:
    """Every record has come to its one end, and every answer saw the whole of its picture."""
    world.s3.heal()
    world.tcp.heal()
    job = world.job
    num_records = len(job.lines)
    committed = committed_ordinals(f"{job.output}/m", job.endpoint)
    assert committed == dict.fromkeys(range(num_records), 1), job.logs()
    assert failed_classes(job) == failed, job.logs()
    results = read_lines(f"{job.output}/m", "results", job.endpoint)
    assert len(results) == num_records - sum(failed.values())
    for line in results:
        for image in line["images"]:
            assert image["num_bytes"] == len(PICTURE) + len(line["id"][1:])


@pytest.mark.parametrize(
    "fault",
    [
        # A quarter of those with a store are in `make test`: they take a second or two each.
        *(
            pytest.param(fault, id=fault.name, marks=() if n % 4 == 2 else pytest.mark.slow)
            for n, fault in enumerate(STORE_FAULTS)
        ),
        *(pytest.param(fault, id=fault.name) for fault in ENGINE_FAULTS),
    ],
)
def test_a_job_that_meets_a_fault_ends_as_promised_and_goes_on(fault, make_world):
    world = make_world(fault)
    job = world.job
    if fault.before:
        job.kill_at(fault.before)
    fault.arrange(world)
    code = job.server.wait(job.start(*fault.more))
    log = job.log(job.num_started - 1)
    assert code == fault.code, log
    assert fault.says in log
    assert "Traceback" not in log
    if code == 0:
        check_complete(world, fault.failed)
        return
    # What was committed stays; with the fault gone the same command comes to the end.
    world.s3.heal()
    world.tcp.heal()
    job.environment = {}
    job.run(("--max-failure-rate", "1"))
    bad = [x for x in fault.lines if "refuse" in x["prompt"]]
    check_complete(world, {"prompt_too_long": len(bad)} if bad else {})


def test_an_image_server_that_is_away_for_a_while_costs_no_record(make_world):
    world = make_world(
        Fault("", delays={**NO_WAITS, "vlmflow.job.record_fetches._DELAYS": [0.5, 60]})
    )
    # Six tries of each request, then the record waits for its turn.
    world.s3.next("GET", refuse(503, "SlowDown"), where="/4.png", times=6)
    world.job.run(())
    check_complete(world, {})


def test_a_signal_while_the_engine_loads_ends_the_job_at_once(make_world):
    world = make_world(Fault("", environment={"FAKE_ENGINE_START": "hang"}, way="folder"))
    pid = world.job.start()
    wait_until(lambda: "24 records" in world.job.log(0))
    os.kill(pid, signal.SIGTERM)
    assert world.job.server.wait(pid) == 75
    assert "told to stop before the first record" in world.job.log(0)


def start_slow_job(world: World, *more: str) -> int:
    """One whose engine answers in ten seconds; return when it has been asked."""
    world.job.environment["FAKE_ENGINE_SECONDS"] = "10"
    log = world.job.folder / "asked"
    world.job.environment["FAKE_ENGINE_LOG"] = str(log)
    pid = world.job.start(*more)
    attempts = StoreOpener(world.job.endpoint).open(f"{world.job.output}/m")
    wait_until(lambda: any(True for _ in attempts.list("_work/progress/")))
    time.sleep(0.5)
    return pid


@pytest.mark.parametrize("grace, num_signals", [(0.5, 1), (60, 2)])
def test_a_job_told_to_stop_waits_for_what_is_in_flight_no_longer_than_its_grace(
    make_world, grace, num_signals
):
    world = make_world(Fault("", way="folder"))
    pid = start_slow_job(world, "--grace", str(grace))
    start = time.monotonic()
    for _ in range(num_signals):
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.1)
    assert world.job.server.wait(pid) == 75
    assert time.monotonic() - start < 5
    assert "stopped with 0 of 24 records done" in world.job.log(0)
    world.job.environment = {}
    world.job.run(())
    check_complete(world, {})


def test_a_store_that_hangs_does_not_hold_up_the_end_of_a_job_told_to_stop(make_world):
    world = make_world(Fault(""))
    world.s3.always("GET", delay(30), where=".png")
    pid = world.job.start("--grace", "0.5")
    attempts = StoreOpener(world.job.endpoint).open(f"{world.job.output}/m")
    wait_until(lambda: any(True for _ in attempts.list("_work/progress/")))
    start = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert world.job.server.wait(pid) == 75
    assert time.monotonic() - start < 5


def test_a_signal_while_the_views_are_written_lets_the_job_end_well(make_world):
    world = make_world(Fault(""))
    world.s3.always("PUT", delay(0.5), where="results/")
    pid = world.job.start()
    store = StoreOpener(world.job.endpoint).open(f"{world.job.output}/m")
    wait_until(lambda: any(True for _ in store.list("_work/finish/claim-")))
    os.kill(pid, signal.SIGTERM)
    assert world.job.server.wait(pid) == 0
    check_complete(world, {})


def test_a_job_that_ends_early_by_its_failures_tells_their_classes(make_world):
    bad = tuple({"id": f"bad{n}", "prompt": "refuse"} for n in range(20))
    slowly = {"FAKE_ENGINE_SECONDS": "0.02"}  # else all is done before it is looked at
    world = make_world(
        Fault("", lines=bad, limits={"min_records": 10}, way="folder", environment=slowly)
    )
    job = world.job
    assert job.server.wait(job.start()) == 3
    last_line = job.log(0).splitlines()[-1]
    assert "more than --max-failure-rate 10.0% (prompt_too_long " in last_line
    assert "what is committed stays" in last_line
    store = StoreOpener(job.endpoint).open(f"{job.output}/m")
    names = list(store.list(""))
    assert "report.json" not in names
    [attempt] = [json.loads(store.read(n)) for n in names if n.startswith("_work/progress/")]
    assert attempt["status"] == "failed"
    # The committed ones are not asked again.
    done = committed_ordinals(f"{job.output}/m", job.endpoint)
    assert len(done) >= 10
    asked = job.folder / "asked"
    job.environment["FAKE_ENGINE_LOG"] = str(asked)
    job.run(("--max-failure-rate", "1"))
    assert not set(map(int, asked.read_text().split())) & set(done)
    check_complete(world, {"prompt_too_long": 20})


def test_a_worker_that_waits_for_another_finishes_what_that_one_left_undone(make_world):
    """The report is there, and _SUCCESS.json is not: waiting for it is not enough."""
    world = make_world(Fault(""))
    may_go_on = threading.Event()

    def hold(exchange: Exchange) -> None:
        may_go_on.wait(60)
        exchange.answer(*exchange.pass_on())

    world.s3.next("PUT", hold, where="report.json")
    job = world.job
    store = StoreOpener(job.endpoint).open(f"{job.output}/m")
    first = job.start("--worker", crash_at="success-due")
    wait_until(lambda: any(True for _ in store.list("_work/finish/claim-")))
    second = job.start("--worker")
    wait_until(lambda: "watching for up to a minute" in job.log(1))
    assert not list(store.list("report.json"))
    may_go_on.set()
    assert job.server.wait(first) == -9
    assert list(store.list("report.json")) and not list(store.list("_SUCCESS.json"))
    assert job.server.wait(second) == 0
    assert list(store.list("_SUCCESS.json"))
    check_complete(world, {})


class CredentialServer(BaseHTTPRequestHandler):
    """Gives out credentials that are soon over, others each time."""

    num_given = 0

    def do_GET(self) -> None:
        CredentialServer.num_given += 1
        # botocore renews what is over in less than a quarter of an hour.
        ends = datetime.now(UTC) + timedelta(minutes=11)
        body = json.dumps(
            {
                "AccessKeyId": f"KEY{CredentialServer.num_given}",
                "SecretAccessKey": "secret",
                "Token": "token",
                "Expiration": ends.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_credentials_that_are_renewed_in_between_cost_nothing(make_world):
    server = ThreadingHTTPServer(("127.0.0.1", 0), CredentialServer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        environment = {
            "AWS_ACCESS_KEY_ID": None,
            "AWS_SECRET_ACCESS_KEY": None,
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{server.server_port}/",
        }
        world = make_world(Fault("", environment=environment))
        world.job.run(())
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    used = {
        re.search(r"Credential=(\w+)/", headers["Authorization"])[1]
        for headers in world.s3.headers_seen("PUT")
    }
    assert len(used) > 1 and all(key.startswith("KEY") for key in used)
    check_complete(world, {})
