"""A way to a server on which whole connections go wrong, whatever is spoken on them.

with FaultyTcp(endpoint) as way:
    way.reset_every = 5             every fifth connection is reset in the middle
    way.bytes_per_second = 50_000
    way.delay_seconds = 0.1         before each piece, in both directions
    way.is_cut = True               nobody is there: connections are reset at once
    way.is_hanging = True           connections are taken, and nothing comes
"""

import socket
import struct
import threading
import time
from typing import Self
from urllib.parse import urlsplit

_PIECE_BYTES = 8192
_RESET_AFTER_BYTES = 300  # of what the client sends: in the middle of a request


class FaultyTcp:
    """Passes connections on, each on two threads."""

    def __init__(self, upstream: str) -> None:
        place = urlsplit(upstream)
        self._upstream = (place.hostname or "127.0.0.1", place.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.num_connections = 0
        self.num_reset = 0
        self.reset_every = 0
        self.bytes_per_second = 0
        self.delay_seconds = 0.0
        self.is_cut = False
        self.is_hanging = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.reset_all()

    def heal(self) -> None:
        """Let nothing go wrong from now on."""
        self.reset_every = self.bytes_per_second = 0
        self.delay_seconds = 0.0
        self.is_cut = self.is_hanging = False

    def reset_all(self) -> None:
        """Reset the connections that are open."""
        with self._lock:
            still_open = list(self._open)
        for end in still_open:
            self._reset(end)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.num_connections += 1
            if self.is_cut:
                self._reset(client)
                continue
            is_to_reset = self.reset_every and self.num_connections % self.reset_every == 0
            server = socket.create_connection(self._upstream)
            with self._lock:
                self._open |= {client, server}
            limit = _RESET_AFTER_BYTES if is_to_reset else 0
            threading.Thread(target=self._carry, args=(client, server, limit), daemon=True).start()

    def _carry(self, client: socket.socket, server: socket.socket, reset_after: int) -> None:
        """Pass on in both directions, until both have ended."""
        back = threading.Thread(target=self._pass_on, args=(server, client, 0), daemon=True)
        back.start()
        self._pass_on(client, server, reset_after)
        back.join()
        with self._lock:
            self._open -= {client, server}
        client.close()
        server.close()

    def _pass_on(self, source: socket.socket, target: socket.socket, reset_after: int) -> None:
        num_bytes = 0
        try:
            while data := source.recv(_PIECE_BYTES):
                num_bytes += len(data)
                while self.is_hanging:
                    time.sleep(0.02)
                if reset_after and num_bytes > reset_after:
                    self.num_reset += 1
                    self._reset(source)
                    self._reset(target)
                    return
                time.sleep(self.delay_seconds)
                if self.bytes_per_second:
                    time.sleep(len(data) / self.bytes_per_second)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            self._reset(source)
            self._reset(target)

    def _reset(self, end: socket.socket) -> None:
        """Close so that the other side hears of it as of a crash."""
        with self._lock:
            self._open.discard(end)
        try:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.shutdown(socket.SHUT_RD)  # wakes whoever waits for it; it cannot be closed before
        except OSError:
            pass
        end.close()
