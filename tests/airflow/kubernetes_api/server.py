"""The HTTP face of the cluster: as much of the Kubernetes API as the provider's clients use."""

import json
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.airflow.kubernetes_api.cluster import Cluster
from tests.airflow.kubernetes_api.objects import ApiError, matches_fields

_PODS = re.compile(
    r"/api/v1/namespaces/(?P<namespace>[^/]+)/pods(/(?P<name>[^/]+)(/(?P<part>log))?)?"
)
_EVENTS = re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/events")
_JOBS = re.compile(
    r"/apis/batch/v1/namespaces/(?P<namespace>[^/]+)/jobs(/(?P<name>[^/]+)(/(?P<part>status))?)?"
)


class KubernetesServer:
    """Serves a cluster on loopback. A context."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.requests: list[tuple[str, str]] = []  # method and path, in order
        self.refusals: dict[str, int] = {}  # "METHOD pattern" -> how many times still 503
        outer = self

        class Handler(_Handler):
            server_face = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def write_kubeconfig(self, path: Path) -> Path:
        """A kubeconfig that points here."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "fake", "user": {"token": "none"}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
            "current-context": "fake",
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def __enter__(self) -> "KubernetesServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.cluster.shut_down()


class _Handler(BaseHTTPRequestHandler):
    server_face: KubernetesServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_DELETE = do_PATCH = do_GET

    def log_message(self, *_: Any) -> None:
        return

    def _answer(self) -> None:
        split = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(split.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"null") if length else None
        face = self.server_face
        face.requests.append((self.command, split.path))
        try:
            for rule, left in face.refusals.items():
                method, _, pattern = rule.partition(" ")
                if left and method == self.command and re.fullmatch(pattern, split.path):
                    face.refusals[rule] = left - 1
                    raise ApiError(503, "ServiceUnavailable", "the server is away")
            if found := _PODS.fullmatch(split.path):
                self._pods(found["namespace"], found["name"], found["part"], query, body)
            elif found := _JOBS.fullmatch(split.path):
                self._jobs(found["namespace"], found["name"], query, body)
            elif _EVENTS.fullmatch(split.path):
                self._events(query)
            else:
                raise ApiError(404, "NotFound", f"no such path: {split.path}")
        except ApiError as error:
            status = {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "message": str(error),
                "reason": error.reason,
                "code": error.code,
            }
            self._send(status, error.code)

    def _pods(
        self, namespace: str, name: str | None, part: str | None, query: dict[str, str], body: Any
    ) -> None:
        cluster = self.server_face.cluster
        if part == "log":
            assert name is not None
            self._log(namespace, name, query)
        elif name is None and self.command == "POST":
            self._send(cluster.create_pod(namespace, body), 201)
        elif name is None:
            found = cluster.select_pods(namespace, query.get("labelSelector", ""))
            self._send({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": found})
        elif self.command == "DELETE":
            self._send(cluster.delete_pod(namespace, name, _grace(query, body)))
        elif self.command == "PATCH":
            self._send(cluster.patch_pod(namespace, name, body))
        else:
            self._send(cluster.read_pod(namespace, name))

    def _jobs(self, namespace: str, name: str | None, query: dict[str, str], body: Any) -> None:
        jobs = self.server_face.cluster.jobs
        if name is None and self.command == "POST":
            self._send(jobs.create(namespace, body), 201)
        elif name is None:
            found = jobs.select(namespace, query.get("labelSelector", ""))
            self._send(
                {"apiVersion": "batch/v1", "kind": "JobList", "metadata": {}, "items": found}
            )
        elif self.command == "DELETE":
            policy = query.get("propagationPolicy") or (body or {}).get("propagationPolicy")
            self._send(jobs.delete(namespace, name, policy or "Background", _grace(query, body)))
        elif self.command == "PATCH":
            self._send(jobs.patch(namespace, name, body))
        else:
            self._send(jobs.read(namespace, name))

    def _events(self, query: dict[str, str]) -> None:
        cluster = self.server_face.cluster
        selector = query.get("fieldSelector", "")
        seen = int(query.get("resourceVersion") or -1)
        if query.get("watch") not in ("true", "True"):
            found = [event for event in cluster.events if matches_fields(selector, event)]
            self._send({"apiVersion": "v1", "kind": "EventList", "metadata": {}, "items": found})
            return
        self._begin_stream("application/json")
        deadline = time.monotonic() + float(query.get("timeoutSeconds") or 1)
        done = 0
        while time.monotonic() < deadline:
            events = cluster.events[done:]
            done += len(events)
            for event in events:
                if int(event["metadata"]["resourceVersion"]) > seen and matches_fields(
                    selector, event
                ):
                    line = json.dumps({"type": "ADDED", "object": event}) + "\n"
                    self._send_chunk(line.encode())
            time.sleep(0.05)
        self._send_chunk(b"")

    def _log(self, namespace: str, name: str, query: dict[str, str]) -> None:
        log = self.server_face.cluster.log(namespace, name)
        follows = query.get("follow") in ("true", "True")
        has_times = query.get("timestamps") in ("true", "True")
        since = datetime.min.replace(tzinfo=UTC)
        if "sinceSeconds" in query:
            since = datetime.now(UTC) - timedelta(seconds=int(query["sinceSeconds"]))
        self._begin_stream("text/plain")
        start = 0
        while True:
            lines, is_open = log.read(start, wait=follows)
            start += len(lines)
            for when, line in lines:
                if when >= since:
                    stamp = f"{when.isoformat()} ".encode() if has_times else b""
                    self._send_chunk(stamp + line)
            if not follows or (not is_open and not lines):
                break
        self._send_chunk(b"")

    def _send(self, value: Any, code: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _begin_stream(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _send_chunk(self, data: bytes) -> None:
        """An empty one ends the stream. Who has gone away is told nothing."""
        try:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        except OSError:
            self.close_connection = True


def _grace(query: dict[str, str], body: Any) -> int | None:
    for given in (query.get("gracePeriodSeconds"), (body or {}).get("gracePeriodSeconds")):
        if given is not None:
            return int(given)
    return None
