"""Frames over a real socket pair, whole or not at all."""

import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmflow_engine.wire import MAX_FRAME_BYTES, ConnectionClosedError, FrameSocket

_LENGTH = struct.Struct("<Q")
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture
def raw() -> Iterator[tuple[FrameSocket, socket.socket]]:
    """One end that speaks frames, and the bare other end."""
    near, far = socket.socketpair()
    with near, far:
        near.settimeout(60)
        far.settimeout(60)
        yield FrameSocket(near), far


@pytest.fixture
def pair(raw: tuple[FrameSocket, socket.socket]) -> tuple[FrameSocket, FrameSocket]:
    return raw[0], FrameSocket(raw[1])


@pytest.mark.parametrize(
    "size", [0, 1, 31, 32, 255, 256, 65_535, 65_536, 1 << 20, (16 << 20) + 1], ids="{:,}".format
)
def test_frame_of_any_size_arrives_whole(pair: tuple[FrameSocket, FrameSocket], size: int) -> None:
    sender, receiver = pair
    frames = [{"type": "request", "images": [bytes([index]) * size]} for index in (1, 2)]
    with ThreadPoolExecutor(1) as pool:
        sent = [pool.submit(sender.send, frame) for frame in frames]
        assert [receiver.receive() for _ in frames] == frames
        for future in sent:
            future.result()


@settings(max_examples=100, deadline=None)
@given(frame=st.dictionaries(st.text(max_size=8), _VALUES, max_size=4))
def test_what_arrives_is_what_was_sent(frame: dict[str, Any]) -> None:
    near, far = socket.socketpair()
    with near, far:
        FrameSocket(near).send(frame)
        assert FrameSocket(far).receive() == frame


def test_frames_of_several_senders_never_mix(pair: tuple[FrameSocket, FrameSocket]) -> None:
    sender, receiver = pair
    num_senders, num_frames = 4, 40
    start = threading.Barrier(num_senders)

    def send_all(name: int) -> None:
        start.wait(60)
        for index in range(num_frames):
            size = (index * 7919) % 100_000
            sender.send({"name": name, "index": index, "body": bytes([name]) * size})

    with ThreadPoolExecutor(num_senders) as pool:
        sent = [pool.submit(send_all, name) for name in range(num_senders)]
        frames = [receiver.receive() for _ in range(num_senders * num_frames)]
        for future in sent:
            future.result()
    for name in range(num_senders):
        own = [frame for frame in frames if frame["name"] == name]
        assert [frame["index"] for frame in own] == list(range(num_frames))
        assert all(set(frame["body"]) <= {name} for frame in own)


def test_frame_that_comes_byte_by_byte_is_one_frame(
    raw: tuple[FrameSocket, socket.socket],
) -> None:
    receiver, far = raw
    for byte in _framed({"type": "stop"}) * 2:
        far.sendall(bytes([byte]))
    assert [receiver.receive(), receiver.receive()] == [{"type": "stop"}] * 2


@pytest.mark.parametrize("num_bytes", [0, 1, 7, 8, 9, 40])
def test_peer_that_closes_within_a_frame_is_a_closed_connection(
    raw: tuple[FrameSocket, socket.socket], num_bytes: int
) -> None:
    receiver, far = raw
    whole = _framed({"type": "result", "text": "x" * 100})
    far.sendall(whole + whole[:num_bytes])
    far.close()
    assert receiver.receive()["type"] == "result"
    with pytest.raises(ConnectionClosedError):
        receiver.receive()


def test_sending_to_a_closed_peer_is_a_closed_connection(
    raw: tuple[FrameSocket, socket.socket],
) -> None:
    sender, far = raw
    far.close()
    with pytest.raises(ConnectionClosedError):
        sender.send({"type": "stop"})


def test_peer_that_closes_while_a_large_frame_is_sent_is_a_closed_connection(
    raw: tuple[FrameSocket, socket.socket],
) -> None:
    sender, far = raw
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(sender.send, {"body": bytes(32 << 20)})
        far.recv(1000)  # the frame is on its way, and far larger than what the sockets hold
        far.close()
        with pytest.raises(ConnectionClosedError):
            sent.result(60)


def test_own_closed_socket_is_a_closed_connection(pair: tuple[FrameSocket, FrameSocket]) -> None:
    link, _ = pair
    link.close()
    with pytest.raises(ConnectionClosedError):
        link.receive()
    with pytest.raises(ConnectionClosedError):
        link.send({"type": "stop"})


@pytest.mark.parametrize("length", [MAX_FRAME_BYTES + 1, 2**64 - 1])
def test_length_that_is_none_is_refused_before_it_takes_memory(
    raw: tuple[FrameSocket, socket.socket], length: int
) -> None:
    receiver, far = raw
    far.sendall(_LENGTH.pack(length))
    with pytest.raises(ConnectionClosedError, match=f"{length:,}"):
        receiver.receive()


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x81\xa1a", b"\x80\x80", b"\x81\xa1\xff\x01", b"\x93\x01\x02\x03", b"\xc0"],
    ids=["empty", "no type", "cut", "tail", "no UTF-8", "list", "nil"],
)
def test_body_that_is_no_map_is_a_closed_connection(
    raw: tuple[FrameSocket, socket.socket], body: bytes
) -> None:
    receiver, far = raw
    far.sendall(_LENGTH.pack(len(body)) + body)
    with pytest.raises(ConnectionClosedError):
        receiver.receive()


def _framed(frame: dict[str, Any]) -> bytes:
    body: bytes = msgpack.packb(frame)
    return _LENGTH.pack(len(body)) + body


@given(
    sizes=st.lists(st.sampled_from([0, 1, 300, 65_500, 65_536, 70_000, 200_000]), max_size=12),
    cuts=st.lists(st.integers(1, 90_000), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=40)
def test_frames_sent_together_arrive_one_by_one_however_the_stream_is_cut(
    sizes: list[int], cuts: list[int]
) -> None:
    frames = [{"n": index, "data": bytes([index]) * size} for index, size in enumerate(sizes)]
    near, far = socket.socketpair()
    with near, far, ThreadPoolExecutor(2) as pool:
        sent = pool.submit(FrameSocket(near).send, *frames)
        stream = bytearray()
        while len(stream) < sum(len(msgpack.packb(frame)) + 8 for frame in frames):
            stream += far.recv(1 << 20)
        sent.result()
    near, far = socket.socketpair()
    with near, far, ThreadPoolExecutor(1) as pool:

        def dribble() -> None:
            position, turn = 0, 0
            while position < len(stream):
                size = cuts[turn % len(cuts)]
                near.sendall(stream[position : position + size])
                position, turn = position + size, turn + 1

        done = pool.submit(dribble)
        receiver = FrameSocket(far)
        assert [receiver.receive() for _ in frames] == frames
        done.result()
