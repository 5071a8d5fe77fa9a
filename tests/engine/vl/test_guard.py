"""Public addresses pass, whatever leads anywhere else does not, and time is limited."""

import threading
import time

import pytest

from vlmflow_engine.errors import MediaFetchError
from vlmflow_engine.vl.guard import Deadline, is_global_address, resolve, resolve_allowed


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "8.8.8.8", "93.184.216.34", "172.15.255.255", "172.32.0.0", "169.253.1.1"),
        *("192.167.1.1", "100.63.255.255", "100.128.0.0", "223.255.255.255", "168.63.129.15"),
        *("2606:4700::1111", "2a00:1450::1", "2001:4860:4860::8888"),
        *("::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"),
        "2001:0:0808:0808::f7f7:f7f7",  # Teredo: server 8.8.8.8, client 8.8.8.8
        "2606:4700::5efe:808:808",
    ],
)
def test_address_of_the_public_internet_passes(address: str) -> None:
    assert is_global_address(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1"),
        *("172.31.255.255", "192.168.0.1", "169.254.169.254", "169.254.170.2", "100.64.0.1"),
        *("100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1"),
        *("203.0.113.1", "192.88.99.1", "224.0.0.1", "239.255.255.250", "240.0.0.1"),
        *("255.255.255.255", "168.63.129.16"),
        *("::", "::1", "fe80::1", "fe80::1%1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1"),
        *("2001:db8::1", "2001:20::1", "2001:2::1", "3fff::1", "100::1", "5f00::1", "4000::1"),
        *("::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:169.254.169.254"),
        *("::ffff:10.0.0.1", "::ffff:0:127.0.0.1", "::ffff:0.0.0.0", "::ffff:224.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808"),
        *("2002:7f00:1::", "2002:a00:1::1", "2002:a9fe:a9fe::"),
        "2001:0:0808:0808::80ff:fffe",  # Teredo: client 127.0.0.1
        "2001:0:7f00:1::f7f7:f7f7",  # Teredo: server 127.0.0.1
        *("2606:4700::5efe:7f00:1", "2606:4700::200:5efe:a00:1"),
        *("", "localhost", "1.2.3", "08.8.8.8"),
    ],
)
def test_address_of_anything_else_is_refused(address: str) -> None:
    assert not is_global_address(address)


@pytest.mark.parametrize(
    "answers", [["10.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["10.0.0.1", "8.8.8.8"]]
)
def test_one_private_answer_makes_a_name_unusable(answers: list[str]) -> None:
    with pytest.raises(MediaFetchError, match="host.example is refused") as caught:
        resolve_allowed("host.example", 80, Deadline(5), lambda *_: answers, is_global_address)
    assert "10.0.0.1" not in str(caught.value)


def test_public_answers_are_returned_in_their_order() -> None:
    answers = ["8.8.8.8", "2606:4700::1111", "1.1.1.1"]
    found = resolve_allowed("h", 80, Deadline(5), lambda *_: answers, is_global_address)
    assert found == answers


def test_name_without_an_address_is_told() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise OSError("no such name")

    with pytest.raises(MediaFetchError, match="h.example cannot be resolved"):
        resolve_allowed("h.example", 80, Deadline(5), unknown, is_global_address)
    with pytest.raises(MediaFetchError, match="h.example has no address"):
        resolve_allowed("h.example", 80, Deadline(5), lambda *_: [], is_global_address)


def test_slow_name_server_is_not_waited_for() -> None:
    ended = threading.Event()

    def slow(host: str, port: int) -> list[str]:
        ended.wait(10)
        return ["8.8.8.8"]

    start = time.monotonic()
    with pytest.raises(TimeoutError):
        resolve_allowed("h", 80, Deadline(0.1), slow, is_global_address)
    assert time.monotonic() - start < 5
    ended.set()


def test_system_resolves_names_and_addresses_each_once() -> None:
    assert "127.0.0.1" in resolve("localhost", 80)
    assert resolve("8.8.8.8", 80) == ["8.8.8.8"]


def test_deadline_runs_down() -> None:
    deadline = Deadline(0.05)
    assert 0 < deadline.remaining <= 0.05
    time.sleep(0.06)
    with pytest.raises(TimeoutError):
        deadline.check()
