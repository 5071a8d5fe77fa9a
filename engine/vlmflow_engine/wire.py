"""Frames between the job and its engine process: a length, then one msgpack map.

    parent -> child   start    model, config           once, first
                      request  ticket, prompt, images, generation
                      stop                             finish what is in flight, then end
    child -> parent   ready    info, credit_bytes, credit_requests
                      result   ticket, response, error, seconds
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
MAX_FRAME_BYTES = 2 << 30

IMAGE_KEY = "$image"


class ConnectionClosedError(Exception):
    """The other side is gone."""


class FrameSocket:
    """Sends and receives frames. Several threads may send, one may receive."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._send_lock = threading.Lock()

    def send(self, frame: dict[str, Any]) -> None:
        """Send a frame whole. Raises ConnectionClosedError."""
        body: bytes = msgpack.packb(frame)
        try:
            with self._send_lock:
                self._socket.sendall(_LENGTH.pack(len(body)))
                self._socket.sendall(body)
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
        data = bytearray(size)
        view = memoryview(data)
        while view:
            try:
                count = self._socket.recv_into(view)
            except OSError as error:
                raise ConnectionClosedError(str(error)) from error
            if count == 0:
                raise ConnectionClosedError("end of stream")
            view = view[count:]
        return bytes(data)
