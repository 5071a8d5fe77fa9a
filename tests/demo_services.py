"""S3 and MLflow on loopback as tests see them: the demo's records, a job's objects, its run."""

import json
import urllib.request
from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.s3_http import S3Server

BUCKET = "demo"  # of examples/demo.py
BAD_IMAGE = "corrupt-image"


@dataclass(frozen=True)
class DemoServices:
    """Where they are: what `tools.loopback_services` says."""

    s3: str  # endpoint
    mlflow: str  # tracking server

    @property
    def server(self) -> S3Server:
        return S3Server(self.s3)

    def write_manifest(self, name: str, num_good: int) -> dict[str, str]:
        """Put some of the demo's records and one with a bad image into shapes/NAME.jsonl.

        Returns the expected answers by id.
        """
        lines = self.read("shapes/manifest.jsonl").decode().splitlines()
        records = [json.loads(line) for line in lines[:-1]]
        good = records[:num_good]
        bad = next(record for record in records if record["id"] == BAD_IMAGE)
        middle = num_good // 2
        chosen = [*good[:middle], bad, *good[middle:]]
        body = "".join(json.dumps(record) + "\n" for record in chosen).encode()
        self.server.put(f"{BUCKET}/shapes/{name}.jsonl", body)
        return {record["id"]: record["expected"] for record in good}

    def read(self, key: str) -> bytes:
        return self.server.read(f"{BUCKET}/{key}")

    def keys(self, prefix: str) -> list[str]:
        return self.server.keys(BUCKET, prefix)

    def lines(self, prefix: str) -> list[dict[str, Any]]:
        """The lines of all objects below a prefix, in order."""
        return self.server.lines(BUCKET, prefix)

    def commits(self, job: str) -> Counter[int]:
        """How often each record stands in a part that a commit names: straight from the log."""
        counts: Counter[int] = Counter()
        for key in self.keys(f"results/{job}/_work/"):
            shard, _, name = key.rpartition("/")
            if not name.startswith("commit-"):
                continue
            entry = json.loads(self.read(key))
            if entry["part"] is not None:
                part = f"{shard}/part-{entry['epoch']:06d}-{entry['part']:08d}.jsonl"
                counts.update(json.loads(line)["ordinal"] for line in self.read(part).splitlines())
        return counts

    def check_answers(self, job: str, expected: dict[str, str]) -> None:
        """Each record was answered once and rightly, in order, and the bad one was set aside."""
        results = self.lines(f"results/{job}/results/")
        assert [record["id"] for record in results] == list(expected)
        assert {record["id"]: record["text"] for record in results} == expected
        failures = self.lines(f"results/{job}/failures/")
        found = [(record["id"], record["error"]["class"]) for record in failures]
        assert found == [(BAD_IMAGE, "image_corrupt")]
        commits = self.commits(job)
        assert sorted(commits) == list(range(len(expected) + 1))
        assert set(commits.values()) == {1}

    def mlflow_run(self, run_id: str) -> dict[str, Any]:
        """A run, as the tracking server tells it."""
        with fetch(f"{self.mlflow}/api/2.0/mlflow/runs/get?run_id={run_id}") as answer:
            return dict(json.load(answer)["run"])


def fetch(url: str) -> Any:
    """Open a URL of a loopback server."""
    assert urlsplit(url).hostname == "127.0.0.1", url
    return urllib.request.urlopen(url, timeout=30)
