"""Frames between the job and its engine process: a length, then one msgpack map.

    parent -> child   start    model, config           once, first
                      request  ticket, prompt, images, generation
                      stop                             finish what is in flight, then end
    child -> parent   ready    info, credit_bytes, credit_requests
                      result   ticket, response, error, seconds, times
                      stats    stats                   at least every second, also as heartbeat
                      failed   message                 instead of ready

An image travels as the bytes of its file, named in the prompt by `{"$image": index}`. Credits: the
parent keeps at most `credit_bytes` and `credit_requests` unanswered. msgpack, never pickle: a frame
is data and cannot be code.
"""

import socket
import struct
import threading
from contextlib import suppress
from typing import Any

import msgpack

_LENGTH = struct.Struct("<Q")
_CHUNK_BYTES = 64 << 10  # small frames are sent and received many at a time
MAX_FRAME_BYTES = 2 << 30

IMAGE_KEY = "$image"


class ConnectionClosedError(Exception):
    """The other side is gone."""


class FrameSocket:
    """Sends and receives frames. Several threads may send, one may receive."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._send_lock = threading.Lock()
        self._chunk = memoryview(bytearray(_CHUNK_BYTES))
        self._received = bytearray()  # from the socket,
        self._taken = 0  # of which so many bytes are no longer of interest

    def send(self, *frames: dict[str, Any]) -> None:
        """Send frames whole, one after the other. Raises ConnectionClosedError."""
        pieces: list[bytes] = []
        for frame in frames:
            body: bytes = msgpack.packb(frame)
            pieces += (_LENGTH.pack(len(body)), body)
        try:
            with self._send_lock:
                small = bytearray()
                for piece in pieces:
                    if len(piece) < _CHUNK_BYTES:
                        small += piece
                        continue
                    # A large one, an image: not copied.
                    self._socket.sendall(small)
                    self._socket.sendall(piece)
                    small.clear()
                self._socket.sendall(small)
        except OSError as error:
            raise ConnectionClosedError(str(error)) from error

    def receive(self) -> dict[str, Any]:
        """Wait for a frame. Raises ConnectionClosedError at the end of the stream."""
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if length > MAX_FRAME_BYTES:
            raise ConnectionClosedError(f"a frame of {length:,} bytes is no frame")
        body = self._read(length)
        try:
            frame = msgpack.unpackb(body)
        except ValueError as error:
            raise ConnectionClosedError(f"{length:,} bytes that are no frame") from error
        if not isinstance(frame, dict):
            raise ConnectionClosedError(f"a frame is a map, got {type(frame).__name__}")
        return frame

    def close(self) -> None:
        """Close; a `receive` that waits on another thread ends."""
        with suppress(OSError):  # the other side may be gone already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self, size: int) -> bytes:
        if len(self._received) - self._taken < size < _CHUNK_BYTES:
            del self._received[: self._taken]
            self._taken = 0
            while len(self._received) < size:
                self._received += self._receive_some(self._chunk)
        start, self._taken = self._taken, min(self._taken + size, len(self._received))
        data = self._received[start : self._taken]
        if len(data) < size:  # a large one: what is missing goes straight to its place
            data += bytes(size - len(data))
            view = memoryview(data)[len(self._received) - start :]
            while view:
                view = view[len(self._receive_some(view)) :]
        return bytes(data)

    def _receive_some(self, buffer: memoryview) -> memoryview:
        """The filled part of `buffer`; at least one byte."""
        try:
            count = self._socket.recv_into(buffer)
        except OSError as error:
            raise ConnectionClosedError(str(error)) from error
        if count == 0:
            raise ConnectionClosedError("end of stream")
        return buffer[:count]
