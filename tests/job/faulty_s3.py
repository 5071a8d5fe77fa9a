"""A proxy before an S3 server on which things go wrong, the way a test asks for.

    faulty_s3.next("PUT", lose_answer)             the next PUT
    faulty_s3.next("GET", cut(100), times=2)       the next two GETs
    faulty_s3.always("HEAD", refuse(403, "AccessDenied"))

Whatever has no fault is passed on.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, Self
from urllib.parse import urlsplit


class Exchange(BaseHTTPRequestHandler):
    """One request: faults change it, pass it on or not, and answer or not."""

    protocol_version = "HTTP/1.1"
    server: "_Server"
    body: bytes

    def pass_on(self) -> tuple[int, dict[str, str], bytes]:
        """Let the real server carry the request out; return status, headers and body."""
        connection = HTTPConnection(self.server.upstream)
        try:
            headers = {k: v for k, v in self.headers.items() if k not in ("Expect", "Connection")}
            connection.request(self.command, self.path, self.body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Send an answer. Without a Content-Length of its own, it bears the body's."""
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            if name not in ("Connection", "Date", "Server", "Transfer-Encoding"):
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def handle_any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.close_connection = True
        fault = self.server.take_fault(self)
        if fault is not None:
            fault(self)
        else:
            self.answer(*self.pass_on())

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        pass


Fault = Callable[[Exchange], None]


def refuse(status: int, code: str, message: str = "") -> Fault:
    """Answer with an error, and do nothing."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"

    def fault(exchange: Exchange) -> None:
        headers = {"Content-Type": "application/xml"}
        exchange.answer(status, headers, b"" if exchange.command == "HEAD" else body.encode())

    return fault


def lose_answer(exchange: Exchange) -> None:
    """Do what is asked, and close the connection without a word."""
    exchange.pass_on()


def do_but_refuse(status: int, code: str) -> Fault:
    """Do what is asked, and say that it was not done."""

    def fault(exchange: Exchange) -> None:
        exchange.pass_on()
        refuse(status, code)(exchange)

    return fault


def cut(num_bytes: int) -> Fault:
    """Announce the whole body, and break off after some bytes of it."""

    def fault(exchange: Exchange) -> None:
        status, headers, body = exchange.pass_on()
        exchange.answer(status, headers, body[:num_bytes])

    return fault


def delay(seconds: float) -> Fault:
    """Take one's time."""

    def fault(exchange: Exchange) -> None:
        time.sleep(seconds)
        exchange.answer(*exchange.pass_on())

    return fault


def dribble(num_pieces: int, pause_seconds: float) -> Fault:
    """Send the body in pieces, with pauses."""

    def fault(exchange: Exchange) -> None:
        status, headers, body = exchange.pass_on()
        exchange.answer(status, {"Content-Length": str(len(body))} | headers, b"")
        size = -(-len(body) // num_pieces)
        for start in range(0, len(body), size):
            exchange.wfile.write(body[start : start + size])
            exchange.wfile.flush()
            time.sleep(pause_seconds)

    return fault


def forget_header(name: str) -> Fault:
    """Be a server that does not know a header."""

    def fault(exchange: Exchange) -> None:
        del exchange.headers[name]
        exchange.answer(*exchange.pass_on())

    return fault


def add_query(text: str) -> Fault:
    """Ask the server something else."""

    def fault(exchange: Exchange) -> None:
        exchange.path += ("&" if "?" in exchange.path else "?") + text
        exchange.answer(*exchange.pass_on())

    return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.upstream = urlsplit(upstream).netloc
        self.lock = Lock()
        self.once: dict[str, list[tuple[str, Fault]]] = defaultdict(list)
        self.constant: dict[str, list[tuple[str, Fault]]] = defaultdict(list)
        self.seen: list[tuple[str, dict[str, str]]] = []

    def take_fault(self, exchange: Exchange) -> Fault | None:
        method = exchange.command
        with self.lock:
            self.seen.append((method, dict(exchange.headers.items())))
            for planned in self.once[method]:
                if planned[0] in exchange.path:
                    self.once[method].remove(planned)
                    return planned[1]
            matching = (fault for where, fault in self.constant[method] if where in exchange.path)
            return next(matching, None)


class FaultyS3:
    """The proxy, as tests handle it."""

    def __init__(self, upstream: str) -> None:
        self._server = _Server(upstream)
        self._thread = Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def next(self, method: str, fault: Fault, *, times: int = 1, where: str = "") -> None:
        """Let the next requests of a method go wrong, after those that are to already.

        Only those whose path holds `where`.
        """
        self._server.once[method].extend([(where, fault)] * times)

    def always(self, method: str, fault: Fault, *, where: str = "") -> None:
        """Let every request of a method go wrong that has no fault of its own, as `next` does."""
        self._server.constant[method].insert(0, (where, fault))

    def heal(self) -> None:
        """Let nothing go wrong from now on."""
        self._server.once.clear()
        self._server.constant.clear()

    def headers_seen(self, method: str) -> list[dict[str, str]]:
        """The headers of all requests of a method that came, in order."""
        return [headers for name, headers in self._server.seen if name == method]
