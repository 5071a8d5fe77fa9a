"""Which addresses media may be fetched from: those of the public internet, and no others.

A URL comes from whoever wrote the prompt; the fetch runs inside the network of whoever runs the
engine. So a name is resolved here, all its addresses are checked, and the connection is made to the
very address that was checked: a second answer of the name server does not matter.
"""

import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from vlmflow_engine.errors import MediaBusyError, MediaFetchError, MediaForbiddenError

# Name and port to addresses, as text. Raises OSError.
Resolver = Callable[[str, int], list[str]]

# What Python 3.11 calls global although nobody's pictures are there.
_REFUSED_V4 = (
    IPv4Network("192.0.0.0/24"),  # protocol assignments; 192.0.0.192 is a cloud's metadata
    IPv4Network("192.88.99.0/24"),  # the old 6to4 relays
    IPv4Network("168.63.129.16/32"),  # Azure's host, to every machine in it
)
# IANA has given out addresses below 2000::/3 only.
_UNICAST_V6 = IPv6Network("2000::/3")
_REFUSED_V6 = (
    IPv6Network("2001::/23"),  # protocol assignments, Teredo apart
    IPv6Network("2001:db8::/32"),  # documentation
    IPv6Network("3fff::/20"),  # documentation
)
_TEREDO = IPv6Network("2001::/32")
_SIX_TO_FOUR = IPv6Network("2002::/16")
# The last four bytes are an IPv4 address: mapped, translated, NAT64.
_EMBEDDING = (
    IPv6Network("::ffff:0:0/96"),
    IPv6Network("::ffff:0:0:0/96"),
    IPv6Network("64:ff9b::/96"),
)
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


class Deadline:
    """The one time limit of a fetch, whatever it is made of."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def remaining(self) -> float:
        """Seconds left. Raises TimeoutError if there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def check(self) -> None:
        """Raise TimeoutError if no time is left."""
        _ = self.remaining


def is_global_address(address: str) -> bool:
    """Whether an address belongs to the public internet, and so does what it embeds."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return _is_global_v4(parsed) if isinstance(parsed, IPv4Address) else _is_global_v6(parsed)


def resolve(host: str, port: int) -> list[str]:
    """Ask the system for a name's addresses, in its order, each once. Raises OSError."""
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


def resolve_allowed(
    host: str,
    port: int,
    deadline: Deadline,
    resolver: Resolver,
    is_allowed_address: Callable[[str], bool],
) -> list[str]:
    """Return the addresses of a host, all of them allowed.

    One that is not makes all unusable: a name with mixed answers is an attempt to slip through.
    Raises MediaForbiddenError, MediaFetchError, TimeoutError.
    """
    addresses = _within(deadline, resolver, host, port)
    if not addresses:
        raise MediaFetchError(f"{host} has no address")
    if not all(is_allowed_address(address) for address in addresses):
        # Which address it was is not said: whoever asks may be mapping the network.
        raise MediaForbiddenError(
            f"{host} is refused: images are fetched from public addresses only, not from this "
            "machine or its network; load the image yourself and hand in its bytes"
        )
    return addresses


def _is_global_v4(address: IPv4Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in _REFUSED_V4)
    )


def _is_global_v6(address: IPv6Address) -> bool:
    number = int(address)
    if any(address in network for network in _EMBEDDING):
        return _is_global_v4(IPv4Address(number & 0xFFFF_FFFF))
    if address in _SIX_TO_FOUR:
        return _is_global_v4(IPv4Address(number >> 80 & 0xFFFF_FFFF))
    if address in _TEREDO:
        server, client = number >> 64 & 0xFFFF_FFFF, ~number & 0xFFFF_FFFF
        return _is_global_v4(IPv4Address(server)) and _is_global_v4(IPv4Address(client))
    if address not in _UNICAST_V6 or any(address in network for network in _REFUSED_V6):
        return False
    return number >> 32 & 0xFFFF_FFFF not in _ISATAP or _is_global_v4(
        IPv4Address(number & 0xFFFF_FFFF)
    )


def _within(deadline: Deadline, resolver: Resolver, host: str, port: int) -> list[str]:
    """Resolve on a thread of its own: getaddrinfo knows no time limit."""
    answer: list[list[str]] = []
    failure: list[Exception] = []

    def work() -> None:
        try:
            answer.append(resolver(host, port))
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True, name="vlmflow-resolve")
    thread.start()
    thread.join(deadline.remaining)
    if failure:
        is_passing = getattr(failure[0], "errno", None) == socket.EAI_AGAIN
        kind = MediaBusyError if is_passing else MediaFetchError
        raise kind(f"{host} cannot be resolved to an address") from failure[0]
    if not answer:
        raise TimeoutError
    return answer[0]
