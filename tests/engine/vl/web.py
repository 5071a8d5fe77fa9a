"""A web server on loopback that says exactly the bytes it is told to, and how slowly."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

# What becomes of a connection once its request is read: the bytes of an answer, or a talk.
Route = bytes | Callable[["Talk"], None]


class Talk:
    """One connection, from the server's side."""

    def __init__(self, connection: socket.socket, ended: threading.Event) -> None:
        self.connection = connection
        self._ended = ended

    def say(self, data: bytes) -> None:
        self.connection.sendall(data)

    def drip(self, data: bytes, seconds: float) -> None:
        """Say the same again and again, with pauses, until nobody listens."""
        while not self._ended.wait(seconds):
            self.connection.sendall(data)

    def reset(self) -> None:
        """End with RST: what the other side reads next is an error."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


class Web:
    """Routes by path. `requests` holds the heads that were read."""

    def __init__(self, *, address: str = "127.0.0.1", port: int = 0) -> None:
        self.routes: dict[str, Route] = {}
        self.requests: list[str] = []
        self.num_connections = 0
        self.tls: ssl.SSLContext | None = None
        self.greeting = b""  # what is said before the request is read
        self._ended = threading.Event()
        self._socket = socket.create_server((address, port))
        self.port = self._socket.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with suppress(OSError):  # wakes accept()
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.num_connections += 1
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        with connection, suppress(OSError):  # whoever asked may go away at any time
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            with connection:
                connection.sendall(self.greeting)
                head = b""
                while b"\r\n\r\n" not in head:
                    if not (data := connection.recv(65_536)):
                        return
                    head += data
                self.requests.append(head.decode("ascii"))
                path = self.requests[-1].split(" ")[1].partition("?")[0]
                route = self.routes.get(path, answer(status="404 Not Found"))
                talk = Talk(connection, self._ended)
                if isinstance(route, bytes):
                    talk.say(route)
                else:
                    route(talk)


def answer(body: bytes = b"", *, status: str = "200 OK", **headers: Any) -> bytes:
    """A whole answer; `Content_Length=None` leaves a header out."""
    fields = {"Content-Length": len(body)} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1") + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return answer(status=status, Location=location)


@contextmanager
def web() -> Iterator[Web]:
    with Web() as server:
        yield server
