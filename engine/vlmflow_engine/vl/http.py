"""GET over http(s) to a checked address, with limits on time, bytes and redirects.

Proxies, .netrc and cookies are not used: a proxy would resolve the name anew, and the check of the
address would be worth nothing. No redirect leads from https to http, which anyone on the way can
alter. User names in URLs are refused.
"""

import functools
import http.client
import io
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vlmflow_engine.errors import (
    ImageTooLargeError,
    ImageTruncatedError,
    MediaBusyError,
    MediaFetchError,
    MediaForbiddenError,
    MediaMissingError,
)
from vlmflow_engine.vl.guard import Deadline, Resolver, resolve_allowed
from vlmflow_engine.vl.url import HttpUrl, parse_http_url

MAX_REDIRECTS = 3

_CHUNK_BYTES = 1 << 16
_RETRY_PAUSE_SECONDS = 0.2
_HEADERS = (
    "User-Agent: Mozilla/5.0 (compatible; vlmflow)\r\n"  # many hosts refuse what names itself less
    "Accept: image/*,video/*;q=0.9,*/*;q=0.8\r\n"
    "Accept-Encoding: identity\r\n"
    "Connection: close\r\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPolicy:
    """Where a fetch may go and how much it may cost."""

    allowed_hosts: frozenset[str] | None  # in the form of HttpUrl.host; None: any
    is_allowed_address: Callable[[str], bool]
    resolver: Resolver
    tls: Callable[[], ssl.SSLContext]
    timeout: float  # seconds, from the first name looked up to the last byte
    max_bytes: int


class _TryAgain(Exception):
    """The server stumbled; `error` is what to say if it stumbles again."""

    def __init__(self, error: MediaFetchError | ImageTruncatedError) -> None:
        super().__init__(str(error))
        self.error = error


@functools.cache
def system_tls() -> ssl.SSLContext:
    """The system's certificates; reading them takes milliseconds, so it is done once."""
    return ssl.create_default_context()


def fetch_http(text: str, policy: HttpPolicy) -> bytes:
    """Get a URL's body. Raises MediaFetchError, ImageTooLargeError or ImageTruncatedError."""
    url = parse_http_url(text)
    deadline = Deadline(policy.timeout)
    may_retry = True
    num_redirects = 0
    while True:
        try:
            answer = _get(url, policy, deadline)
        except _TryAgain as stumble:
            if not may_retry:
                raise stumble.error from None
            may_retry = False
            time.sleep(_RETRY_PAUSE_SECONDS)
            continue
        except TimeoutError:
            raise MediaBusyError(
                f"{url.shown} gave no whole answer in {policy.timeout:g} seconds; "
                "VLMFLOW_IMAGE_FETCH_TIMEOUT or VLMFLOW_VIDEO_FETCH_TIMEOUT allows more"
            ) from None
        if isinstance(answer, bytes):
            return answer
        num_redirects += 1
        if num_redirects > MAX_REDIRECTS:
            raise MediaFetchError(
                f"{url.shown} redirects once more; {MAX_REDIRECTS} redirects are followed"
            )
        if url.scheme == "https" and answer.scheme == "http":
            raise MediaForbiddenError(f"{url.shown} redirects from https to http")
        url = answer


def _get(url: HttpUrl, policy: HttpPolicy, deadline: Deadline) -> bytes | HttpUrl:
    """Ask once: the body, or where it redirects to. Raises _TryAgain, TimeoutError."""
    if policy.allowed_hosts is not None and url.host not in policy.allowed_hosts:
        raise MediaForbiddenError(f"host {url.host[:80]!r} is not among allowed_media_domains")
    addresses = resolve_allowed(
        url.host, url.port, deadline, policy.resolver, policy.is_allowed_address
    )
    with _connect(url, addresses, policy, deadline) as connection:
        response = http.client.HTTPResponse(_Stream(connection, deadline), method="GET")  # type: ignore[arg-type]
        try:
            connection.settimeout(deadline.remaining)
            connection.sendall(_request(url))
            response.begin()
            location = response.headers.get("Location")
            if response.status in (301, 302, 303, 307, 308) and location:
                return url.follow(location)
            _check_status(url, response.status)
            return _read_body(url, response, policy.max_bytes)
        except TimeoutError:
            raise
        except http.client.IncompleteRead:
            raise _TryAgain(ImageTruncatedError(f"{url.shown} ended before its end")) from None
        except ConnectionError:
            raise _TryAgain(MediaBusyError(f"{url.shown}: the connection was lost")) from None
        except (OSError, http.client.HTTPException, ValueError):
            raise MediaFetchError(f"{url.shown} gave an answer that is not HTTP") from None
        finally:
            response.close()


def _request(url: HttpUrl) -> bytes:
    return f"GET {url.target} HTTP/1.1\r\nHost: {url.host_header}\r\n{_HEADERS}\r\n".encode("ascii")


def _check_status(url: HttpUrl, status: int) -> None:
    if status >= 500 or status == 429:
        raise _TryAgain(MediaBusyError(f"{url.shown} answered with status {status}"))
    if status in (404, 410):
        raise MediaMissingError(f"{url.shown} does not exist (status {status})")
    if status in (401, 403):
        raise MediaForbiddenError(f"{url.shown}: access denied (status {status})")
    if status != 200:
        raise MediaFetchError(f"{url.shown} answered with status {status}, not with an image")


def _connect(
    url: HttpUrl, addresses: list[str], policy: HttpPolicy, deadline: Deadline
) -> socket.socket:
    """Connect to the first address that answers; each gets its share of the time."""
    for position, address in enumerate(addresses):
        share = deadline.remaining / (len(addresses) - position)
        try:
            connection = socket.create_connection((address, url.port), timeout=share)
        except OSError:
            continue
        if url.scheme == "http":
            return connection
        try:
            connection.settimeout(deadline.remaining)
            return policy.tls().wrap_socket(connection, server_hostname=url.host)
        except BaseException as error:
            connection.close()
            if isinstance(error, ssl.SSLCertVerificationError):
                raise MediaFetchError(f"{url.shown}: its certificate is not valid for it") from None
            if isinstance(error, ConnectionError):
                raise _TryAgain(MediaBusyError(f"{url.shown}: the connection was lost")) from None
            if isinstance(error, TimeoutError) or not isinstance(error, OSError):
                raise
            raise MediaFetchError(f"{url.shown}: no TLS connection can be made") from None
    deadline.check()
    raise MediaBusyError(f"{url.shown}: no connection can be made")


def _read_body(url: HttpUrl, response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    too_large = ImageTooLargeError(f"{url.shown} has more than {max_bytes:,} bytes")
    declared = response.length
    if declared is not None and declared > max_bytes:
        raise too_large
    body = bytearray()
    num_received = 0

    def received() -> Iterator[bytes]:
        nonlocal num_received
        while chunk := response.read(_CHUNK_BYTES):
            num_received += len(chunk)
            if num_received > max_bytes:
                raise too_large
            yield chunk

    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    for chunk in _decoded(url, encoding, received()):
        body += chunk
        if len(body) > max_bytes:
            raise too_large
    if declared is not None and num_received < declared:
        raise _TryAgain(
            ImageTruncatedError(f"{url.shown} ended after {num_received:,} of {declared:,} bytes")
        )
    return bytes(body)


def _decoded(url: HttpUrl, encoding: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack what a server packed although it was asked not to, a bounded piece at a time."""
    if encoding in ("identity", ""):
        yield from chunks
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise MediaFetchError(f"{url.shown} is packed as {encoding[:20]!r}, which is not read")
    unpacker = zlib.decompressobj(wbits=47)  # gzip or zlib, told by the header
    try:
        for chunk in chunks:
            while chunk and not unpacker.eof:
                yield unpacker.decompress(chunk, _CHUNK_BYTES)
                chunk = unpacker.unconsumed_tail
        yield unpacker.flush()  # a few thousand bytes at most: all input was taken above
        if not unpacker.eof:
            raise _TryAgain(ImageTruncatedError(f"{url.shown} ended before its end"))
    except zlib.error:
        raise MediaFetchError(f"{url.shown}: what it packed cannot be unpacked") from None


class _Stream:
    """A socket as HTTPResponse wants it, whose every read heeds the deadline."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self._connection = connection
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._connection, self._deadline))


class _DeadlineReader(io.RawIOBase):
    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self._connection = connection
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        self._connection.settimeout(self._deadline.remaining)
        return self._connection.recv_into(buffer)
