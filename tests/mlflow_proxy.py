"""A way to an MLflow server on which things go wrong."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Proxy:
    """Hands requests on, unless told otherwise. What is changed holds for the next request."""

    url: str
    is_down: bool = False  # connections are closed without an answer
    status: int = 0  # answer with this one, whatever was asked
    seconds: float = 0.0  # before each answer
    num_requests: int = 0


@contextmanager
def proxy_to(server: str) -> Iterator[Proxy]:
    """A proxy in front of a server."""
    host = server.removeprefix("http://")
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def _hand_on(self) -> None:
            proxy.num_requests += 1
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            closing.wait(proxy.seconds)
            if proxy.is_down:
                self.close_connection = True
                return
            if proxy.status:
                content = b'{"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "busy"}'
                self._answer(proxy.status, {"Retry-After": "3600"}, content)
                return
            connection = http.client.HTTPConnection(host, timeout=60)
            kept = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            connection.request(self.command, self.path, body, kept)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            self._answer(answer.status, {"Content-Type": answer.headers["Content-Type"]}, content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _hand_on

        def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that did not wait

    httpd = Server(("127.0.0.1", 0), Handler)
    proxy = Proxy(f"http://127.0.0.1:{httpd.server_port}")
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield proxy
    finally:
        closing.set()
        httpd.shutdown()
        thread.join()
        httpd.server_close()
