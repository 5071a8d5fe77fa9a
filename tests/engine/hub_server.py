"""A model hub on loopback with a few repositories: as much of its API as a download needs."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Files = Mapping[str, bytes]  # path in the repository -> content


@dataclass
class Hub:
    """What the hub holds, and what it was asked for."""

    repositories: dict[str, dict[str, Files]] = field(default_factory=dict)  # revision -> files
    gated: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)  # whose files answer with HTTP status 410
    fetched: list[str] = field(default_factory=list)  # paths whose content was sent
    url: str = ""

    def commit(self, name: str, revision: str) -> str:
        """What a branch is at now; other files are another commit."""
        files = sorted(self.repositories[name][revision].items())
        return sha1(f"{name} {revision} {files}".encode()).hexdigest()


@contextmanager
def serve_hub(hub: Hub) -> Iterator[Hub]:
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        # api/models/OWNER/NAME/(revision|tree)/REVISION, or OWNER/NAME/resolve/REVISION/PATH
        is_api = parts[:2] == ["api", "models"]
        owner, repository, what, revision, *path = parts[2:] if is_api else parts
        name = f"{owner}/{repository}"
        if name not in self.hub.repositories:
            return self._refuse(401, "RepoNotFound")
        if name in self.hub.gated:
            return self._refuse(403, "GatedRepo")
        commits = {
            given: files
            for branch, files in self.hub.repositories[name].items()
            for given in (branch, self.hub.commit(name, branch))
        }
        if revision not in commits:
            return self._refuse(404, "RevisionNotFound")
        files = commits[revision]
        commit = revision if len(revision) == 40 else self.hub.commit(name, revision)
        if what == "revision":
            return self._send({"id": name, "sha": commit, "siblings": []})
        if what == "tree":
            return self._send(
                [
                    {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
                    for path, data in files.items()
                ]
            )
        if name in self.hub.closed:
            return self._refuse(410, "")
        data = files["/".join(path)]
        if self.command == "GET":
            self.hub.fetched.append("/".join(path))
        self._send(data, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": commit})

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", "https://cdn.example/x?Signature=SECRET")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: object, headers: Mapping[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    return sha1(b"blob %d\0" % len(data) + data).hexdigest()
