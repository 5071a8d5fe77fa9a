"""A job that is killed and gone on with, and what must have become of it in the end."""

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.job.jobs import FAKE_ENGINE, committed_ordinals, make_model, read_lines, records
from vlmflow.job.crash_points import CRASH_VARIABLE
from vlmflow.job.engine_process import COMMAND_VARIABLE
from vlmflow.job.store import StoreOpener

SECONDS = 60.0  # that a job of a few records may take on a busy machine

# Some succeed, one is refused by the engine, one is no JSON and one a duplicate.
SHORT = [
    *records(20),
    {"id": "refused", "prompt": "refuse"},
    "no JSON",
    {"id": "r3", "prompt": "x"},
]
# So many that a checkpoint comes up, when each is a commit of its own.
LONG = records(70)


class JobServer:
    """The process that starts jobs."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("job_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(
        self,
        arguments: list[str],
        log: Path,
        environment: dict[str, str | None],
        delays: dict[str, Any],
    ) -> int:
        order = {
            "start": arguments,
            "log": str(log),
            "environment": environment,
            "delays": delays,
        }
        pid: int = self._ask(order)["pid"]
        return pid

    def wait(self, pid: int) -> int | None:
        code: int | None = self._ask({"wait": pid, "seconds": SECONDS})["code"]
        return code

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@dataclass
class ChaosJob:
    """One job, in a folder or a bucket, with as many processes on it as it takes."""

    server: JobServer
    folder: Path  # for manifest, model and logs
    output: str  # s3:// or a folder
    lines: list[Any] = field(default_factory=lambda: SHORT)
    commit_records: int = 4
    model: str = ""  # of the real engine
    mlflow_uri: str = ""  # none: no tracking
    mlflow_seconds: float = 60.0  # that the job's end waits for it
    num_shards: int = 1
    endpoint: str | None = None
    environment: dict[str, str | None] = field(default_factory=dict)
    delays: dict[str, Any] = field(default_factory=dict)  # constants of the product, shortened
    limits: dict[str, Any] = field(default_factory=dict)
    allowed_s3: list[str] = field(default_factory=list)
    num_started: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        manifest = self.folder / "m.jsonl"
        manifest.write_text(
            "".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in self.lines)
        )
        spec = {
            "manifest": str(manifest),
            "model": self.model or str(make_model(self.folder / "model")),
            "engine": {"dtype": "float32"} if self.model else {},
            "generation": {"max_new_tokens": 12},
            "output": self.output,
            "endpoint_url": self.endpoint,
            "num_shards": self.num_shards,
            "limits": {"commit_records": self.commit_records, **self.limits},
            # The manifest lies in a folder, so no bucket is its own.
            "media": {"allowed_s3": self.allowed_s3},
            "tracking": {
                "enabled": bool(self.mlflow_uri),
                "uri": self.mlflow_uri or None,
                "end_seconds": self.mlflow_seconds,
            },
        }
        self._spec = self.folder / "spec.json"
        self._spec.write_text(json.dumps(spec))

    def start(self, *more: str, crash_at: str | None = None) -> int:
        log = self.folder / f"log-{self.num_started}"
        self.num_started += 1
        environment: dict[str, str | None] = {
            COMMAND_VARIABLE: FAKE_ENGINE,
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "FAKE_ENGINE_SECONDS": "0",
        }
        if crash_at is not None:
            environment[CRASH_VARIABLE] = crash_at
        arguments = ["run", "--spec", str(self._spec), *more]
        environment |= self.environment
        return self.server.start(arguments, log, environment, self.delays)

    def kill_at(self, point: str, *more: str) -> None:
        """Run until the point, where the process is killed."""
        code = self.server.wait(self.start(*more, crash_at=point))
        assert code == -9, f"{point} was not reached: exit code {code}\n{self.logs()}"

    def run(self, *commands: Iterable[str]) -> None:
        """Run processes beside one another, each with options of its own; all must end well."""
        first = self.num_started
        pids = [self.start(*more) for more in commands]
        codes = [self.server.wait(pid) for pid in pids]
        assert codes == [0] * len(commands), f"exit codes {codes}\n{self.logs()}"
        for number in range(first, self.num_started):  # an engine whose job is killed may complain
            assert "Traceback" not in self.log(number), self.logs()

    def log(self, number: int) -> str:
        """What one of the processes said."""
        log = self.folder / f"log-{number}"
        return log.read_text() if log.exists() else ""

    def logs(self) -> str:
        names = sorted(self.folder.glob("log-*"))
        return "\n".join(f"--- {name.name}\n{name.read_text()}" for name in names)

    def answers(self) -> dict[str, Any]:
        """What users are handed, without what differs from run to run."""
        output = f"{self.output}/m"
        results = read_lines(output, "results", self.endpoint)
        failures = read_lines(output, "failures", self.endpoint)
        return {
            "results": [(line["ordinal"], line["id"], line["text"]) for line in results],
            "failures": [(x["ordinal"], x["id"], x["error"]["class"]) for x in failures],
        }

    def check(self, expected: dict[str, Any]) -> None:
        """Every record of the manifest once, as in a job that nobody killed, and all told of it."""
        logs = self.logs()
        store = StoreOpener(self.endpoint).open(f"{self.output}/m")
        assert self.answers() == expected, logs
        report, success = (
            json.loads(store.read(name)) for name in ("report.json", "_SUCCESS.json")
        )
        assert report["counts"] == success["counts"], logs
        assert report["counts"]["succeeded"] == len(expected["results"]), logs
        assert report["generation"] == success["generation"], logs
        aside = {"duplicate_id", "invalid_line"}
        asked = [x[0] for x in expected["results"]]
        asked += [x[0] for x in expected["failures"] if x[2] not in aside]
        counts = committed_ordinals(f"{self.output}/m", self.endpoint)
        again = {x[0] for x in expected["failures"]} if report["generation"] else set()
        assert counts == {n: 1 + (n in again) for n in asked}, logs
        assert "running" not in {attempt["status"] for attempt in report["attempts"]}, logs
