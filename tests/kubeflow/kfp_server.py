"""A server on loopback that answers as Kubeflow Pipelines does to who starts a run."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

EXPERIMENT = {"experiment_id": "e1", "display_name": "vlmflow"}


class FakeServer(ThreadingHTTPServer):
    """What it was told, and how it is to behave."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.health: tuple[int, bytes] = (200, b'{"multi_user": false}')
        self.run_answer: tuple[int, bytes] = (200, b'{"run_id": "r1"}')

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        self.server.headers.append(dict(self.headers))
        if self.path.endswith("/healthz"):
            self._answer(*self.server.health)
        else:  # no experiment of the name yet
            self._answer(200, b'{"experiments": []}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "/experiments" in self.path:
            self._answer(200, json.dumps(EXPERIMENT).encode())
        else:
            self.server.runs.append(body)
            self._answer(*self.server.run_answer)

    def _answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def kfp_server() -> Iterator[FakeServer]:
    """Run one for a while."""
    server = FakeServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
