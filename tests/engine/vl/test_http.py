"""GET against a real server: what arrives, what is refused, and how long it may take."""

import gzip
import ipaddress
import socket
import ssl
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.engine.vl.web import Talk, Web, answer, redirect
from vlmflow_engine.errors import (
    ImageTooLargeError,
    ImageTruncatedError,
    MediaBusyError,
    MediaError,
    MediaFetchError,
    MediaForbiddenError,
    MediaMissingError,
)
from vlmflow_engine.vl.guard import resolve
from vlmflow_engine.vl.http import HttpPolicy, fetch_http, system_tls

BODY = bytes(range(256)) * 400


def policy(**changes: Any) -> HttpPolicy:
    """One under which this machine is the public internet."""
    defaults = {
        "allowed_hosts": None,
        "is_allowed_address": lambda address: address.startswith("127.0.0."),
        "resolver": lambda host, port: ["127.0.0.1"],
        "tls": system_tls,
        "timeout": 30.0,
        "max_bytes": 1 << 20,
    }
    return HttpPolicy(**defaults | changes)


WAYS: dict[str, bytes | Callable[[Talk], None]] = {
    "length": answer(BODY),
    "until closed": answer(BODY, Content_Length=None),
    "chunks": answer(
        b"%x\r\n%b\r\n" % (len(BODY), BODY) + b"3;x=y\r\nend\r\n0\r\n\r\n",
        Content_Length=None,
        Transfer_Encoding="chunked",
    ),
    "gzip": answer(gzip.compress(BODY), Content_Encoding="gzip"),
    "deflate": answer(zlib.compress(BODY), Content_Encoding="deflate"),
    "early hints": b"HTTP/1.1 100 Continue\r\n\r\n" + answer(BODY),
    "byte by byte": lambda talk: [talk.say(bytes([byte])) for byte in answer(BODY[:500])],
}


@pytest.mark.parametrize("way", WAYS)
def test_body_arrives_whole_in_every_way_of_sending_it(way: str, server: Web) -> None:
    server.routes["/a"] = WAYS[way]
    body = fetch_http(f"{server.url}/a", policy())
    assert body == (BODY[:500] if way == "byte by byte" else BODY + b"end" * (way == "chunks"))


def test_request_names_the_host_and_holds_nothing_of_the_caller(
    server: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    fetch_http(f"http://Pictures.Example:{server.port}/a.png?b=c d#e", policy())
    line, *headers, _, _ = server.requests[0].split("\r\n")
    assert line == "GET /a.png?b=c%20d HTTP/1.1"
    fields = dict(header.split(": ", 1) for header in headers)
    assert fields["Host"] == f"pictures.example:{server.port}"
    assert fields["Accept-Encoding"] == "identity"
    assert set(fields) == {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}


def test_redirects_are_followed_three_times_and_not_four(server: Web) -> None:
    server.routes |= {
        "/5": redirect("/4"),
        "/4": redirect("/3", "308 Permanent"),
        "/3": redirect(f"{server.url}/2", "301 Moved"),
        "/2": redirect("1", "307 Temporary"),
        "/1": redirect("/a.png", "303 See Other"),
    }
    assert fetch_http(f"{server.url}/3", policy()).startswith(b"\x89PNG")
    for path in ("/4", "/5"):
        with pytest.raises(MediaFetchError, match="3 redirects are followed"):
            fetch_http(server.url + path, policy())


def test_host_of_every_hop_must_be_among_those_allowed(server: Web) -> None:
    server.routes["/away"] = redirect(f"http://other.example:{server.port}/a.png")
    allowed = policy(allowed_hosts=frozenset({"good.example"}))
    fetch_http(f"http://good.example:{server.port}/a.png", allowed)
    for url in (
        f"http://good.example:{server.port}/away",
        f"http://sub.good.example:{server.port}/a.png",
        f"http://good.example.other.example:{server.port}/a.png",
    ):
        with pytest.raises(MediaFetchError, match="not among allowed_media_domains"):
            fetch_http(url, allowed)
    assert server.num_connections == 2


def test_address_of_every_hop_must_be_allowed(server: Web) -> None:
    names = {"good.example": "127.0.0.1", "inside.example": "10.0.0.1"}
    server.routes["/away"] = redirect(f"http://inside.example:{server.port}/a.png")
    with pytest.raises(MediaFetchError, match="inside.example is refused"):
        fetch_http(
            f"http://good.example:{server.port}/away",
            policy(resolver=lambda host, port: [names[host]]),
        )


def test_second_answer_of_a_name_server_does_not_matter(server: Web) -> None:
    # The name is looked up once: the checked address is the one that is connected to.
    with Web(address="127.0.0.2", port=server.port) as public:
        public.routes["/a"] = answer(b"public")
        server.routes["/a"] = answer(b"private")
        answers = iter([["127.0.0.2"], ["127.0.0.1"]])
        rebinding = policy(
            resolver=lambda host, port: next(answers),
            is_allowed_address=lambda address: address == "127.0.0.2",
        )
        assert fetch_http(f"http://rebinding.example:{server.port}/a", rebinding) == b"public"
        with pytest.raises(MediaFetchError, match="refused"):
            fetch_http(f"http://rebinding.example:{server.port}/a", rebinding)
    assert server.num_connections == 0


def test_rebinding_between_two_hops_or_two_attempts_is_refused(server: Web) -> None:
    with Web(address="127.0.0.2", port=server.port) as public:
        public.routes |= {"/hop": redirect("/a"), "/retry": answer(status="503 Busy")}
        for path in ("/hop", "/retry"):
            answers = iter([["127.0.0.2"], ["127.0.0.1"]])
            rebinding = policy(
                resolver=lambda host, port, answers=answers: next(answers),
                is_allowed_address=lambda address: address == "127.0.0.2",
            )
            with pytest.raises(MediaFetchError, match="refused"):
                fetch_http(f"http://rebinding.example:{server.port}{path}", rebinding)
    assert server.num_connections == 0


def test_next_address_is_tried_when_one_does_not_answer(server: Web) -> None:
    two = policy(resolver=lambda host, port: ["127.0.0.3", "127.0.0.1"])
    assert fetch_http(f"http://h.example:{server.port}/a.png", two).startswith(b"\x89PNG")


def once(first: Callable[[Talk], None], then: bytes) -> Callable[[Talk], None]:
    """A route that stumbles the first time."""
    calls: list[Talk] = []

    def route(talk: Talk) -> None:
        calls.append(talk)
        if len(calls) == 1:
            first(talk)
        else:
            talk.say(then)

    return route


STUMBLES: dict[str, Callable[[Talk], None]] = {
    "500": lambda talk: talk.say(answer(status="500 Oops")),
    "503": lambda talk: talk.say(answer(status="503 Busy")),
    "reset": Talk.reset,
    "closed": lambda talk: None,
    "reset in the body": lambda talk: (
        talk.say(answer(b"half", Content_Length=8)),
        talk.reset(),
    ),
    "closed in the body": lambda talk: talk.say(answer(b"half", Content_Length=8)),
    "closed in a chunk": lambda talk: talk.say(
        answer(b"8\r\nhalf", Content_Length=None, Transfer_Encoding="chunked")
    ),
    "closed in what is packed": lambda talk: talk.say(
        answer(gzip.compress(BODY)[:-50], Content_Encoding="gzip")
    ),
}


@pytest.mark.parametrize("stumble", STUMBLES)
def test_server_that_stumbles_is_asked_once_more(stumble: str, server: Web) -> None:
    server.routes["/a"] = once(STUMBLES[stumble], answer(b"whole"))
    assert fetch_http(f"{server.url}/a", policy()) == b"whole"
    server.routes["/b"] = STUMBLES[stumble]
    truncated = "closed in" in stumble
    with pytest.raises(ImageTruncatedError if truncated else MediaFetchError):
        fetch_http(f"{server.url}/b", policy())
    assert server.num_connections == 4


def test_server_that_knows_what_it_does_is_asked_once(server: Web) -> None:
    for status in ("404 Not Found", "403 Forbidden", "204 No Content", "206 Partial", "304 Same"):
        server.routes["/a"] = answer(status=status)
        server.num_connections = 0
        with pytest.raises(MediaFetchError, match=f"status {status[:3]}"):
            fetch_http(f"{server.url}/a", policy())
        assert server.num_connections == 1


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        ("404 Not Found", MediaMissingError, False),
        ("410 Gone", MediaMissingError, False),
        ("401 Unauthorized", MediaForbiddenError, False),
        ("403 Forbidden", MediaForbiddenError, False),
        ("400 Bad Request", MediaFetchError, False),
        ("429 Too Many Requests", MediaBusyError, True),
        ("503 Busy", MediaBusyError, True),
    ],
)
def test_why_there_is_no_image_is_told_by_the_errors_class(
    status: str, kind: type[MediaFetchError], retryable: bool, server: Web
) -> None:
    server.routes["/a"] = answer(status=status)
    with pytest.raises(MediaFetchError) as caught:
        fetch_http(f"{server.url}/a", policy())
    assert type(caught.value) is kind
    assert caught.value.retryable is retryable


def test_name_that_cannot_be_resolved_just_now_may_be_asked_again() -> None:
    for code, kind in (
        (socket.EAI_AGAIN, MediaBusyError),
        (socket.EAI_NONAME, MediaFetchError),
    ):

        def fail(host: str, port: int, code: int = code) -> list[str]:
            raise socket.gaierror(code, "no answer")

        with pytest.raises(MediaFetchError) as caught:
            fetch_http("http://h.example/a", policy(resolver=fail))
        assert type(caught.value) is kind


def test_length_that_was_not_kept_is_told_in_bytes(server: Web) -> None:
    server.routes["/a"] = answer(b"half", Content_Length=8)
    with pytest.raises(ImageTruncatedError, match="4 of 8 bytes"):
        fetch_http(f"{server.url}/a", policy())


TOO_MUCH: dict[str, bytes | Callable[[Talk], None]] = {
    "declared": answer(b"", Content_Length=2_000_000),
    "declared without end": answer(b"", Content_Length=10**30),
    "sent": answer(bytes(2_000_000), Content_Length=None),
    "sent without end": lambda talk: (
        talk.say(answer(Content_Length=None)),
        talk.drip(bytes(100_000), 0),
    ),
    "chunks without end": lambda talk: (
        talk.say(answer(Content_Length=None, Transfer_Encoding="chunked")),
        talk.drip(b"10000\r\n" + bytes(65_536) + b"\r\n", 0),
    ),
    "one chunk without end": lambda talk: (
        talk.say(answer(Content_Length=None, Transfer_Encoding="chunked") + b"f" * 15 + b"\r\n"),
        talk.drip(bytes(100_000), 0),
    ),
    "packed": answer(gzip.compress(bytes(50_000_000)), Content_Encoding="gzip"),
    "behind the end of what is packed": lambda talk: (
        talk.say(answer(gzip.compress(b"x"), Content_Length=None, Content_Encoding="gzip")),
        talk.drip(bytes(100_000), 0),
    ),
}


@pytest.mark.parametrize("way", TOO_MUCH)
def test_body_is_read_up_to_its_limit_and_no_further(way: str, server: Web) -> None:
    server.routes["/a"] = TOO_MUCH[way]
    with pytest.raises(ImageTooLargeError, match="more than 1,048,576 bytes"):
        fetch_http(f"{server.url}/a", policy())


def test_packed_body_is_unpacked_a_piece_at_a_time(server: Web) -> None:
    server.routes["/a"] = TOO_MUCH["packed"]  # 50 KB, which arrive at once
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLargeError):
            fetch_http(f"{server.url}/a", policy())
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_body_of_exactly_the_limit_is_read(server: Web) -> None:
    server.routes["/a"] = answer(bytes(1 << 20))
    assert len(fetch_http(f"{server.url}/a", policy())) == 1 << 20
    server.routes["/a"] = answer(bytes((1 << 20) + 1), Content_Length=None)
    with pytest.raises(ImageTooLargeError):
        fetch_http(f"{server.url}/a", policy())


SLOW: dict[str, Callable[[Talk], None]] = {
    "silent": lambda talk: talk.drip(b"", 0.05),
    "status": lambda talk: talk.drip(b"H", 0.05),
    "headers": lambda talk: (talk.say(b"HTTP/1.1 200 OK\r\n"), talk.drip(b"A: b\r\n", 0.05)),
    "continue": lambda talk: talk.drip(b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
    "body": lambda talk: (
        talk.say(answer(Content_Length=1_000_000)),
        talk.drip(b"x", 0.05),
    ),
    "chunk size": lambda talk: (
        talk.say(answer(Content_Length=None, Transfer_Encoding="chunked")),
        talk.drip(b"0", 0.05),
    ),
    "trailers": lambda talk: (
        talk.say(answer(b"0\r\n", Content_Length=None, Transfer_Encoding="chunked")),
        talk.drip(b"a: b\r\n", 0.05),
    ),
}


@pytest.mark.parametrize("part", SLOW)
def test_time_is_counted_over_all_of_a_fetch(part: str, server: Web) -> None:
    # Each pause is shorter than the limit; only their sum is not.
    server.routes["/a"] = SLOW[part]
    start = time.monotonic()
    with pytest.raises(MediaFetchError, match="no whole answer in 0.4 seconds"):
        fetch_http(f"{server.url}/a?sig=SECRET", policy(timeout=0.4))
    assert time.monotonic() - start < 10


def test_redirects_share_one_time_limit(server: Web) -> None:
    for hop in range(3):
        server.routes[f"/{hop}"] = lambda talk, hop=hop: (
            time.sleep(0.2),
            talk.say(redirect(f"/{hop + 1}")),
        )
    with pytest.raises(MediaFetchError, match="0.5 seconds"):
        fetch_http(f"{server.url}/0", policy(timeout=0.5))


@pytest.mark.parametrize(
    "said",
    [
        *(
            b"",
            b"SSH-2.0-x\r\n",
            b"\0" * 100,
            b"HTTP/1.1 xyz\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" * 200,
        ),
        b"HTTP/1.1 200 OK\r\n" + b"A" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        answer(b"zz\r\n", Content_Length=None, Transfer_Encoding="chunked"),
        answer(b"no gzip at all", Content_Encoding="gzip"),
        answer(b"x", Content_Encoding="br"),
        answer(status="302 Found"),
        redirect("http://[SECRET"),
    ],
    ids=lambda said: f"{said[:24]!r}, {len(said)} bytes",
)
def test_server_that_talks_nonsense_is_an_error_of_ours(said: bytes, server: Web) -> None:
    server.routes["/a"] = said
    with pytest.raises(MediaError) as caught:
        fetch_http(f"{server.url}/a?sig=SECRET", policy())
    assert "SECRET" not in str(caught.value) and len(str(caught.value)) < 200


def test_port_where_nobody_listens_is_told() -> None:
    with pytest.raises(MediaFetchError, match="no connection can be made"):
        fetch_http("http://h.example:9/a?sig=SECRET", policy())


def certificate(folder: Path, *names: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's TLS for these names, and a client's that trusts it alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    alternatives: list[x509.GeneralName] = [
        x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
        for name in names
    ]
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = signed.public_bytes(serialization.Encoding.PEM)
    (folder / "both.pem").write_bytes(
        pem
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "both.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


def test_certificate_is_checked_for_the_name_in_the_url(server: Web, tmp_path: Path) -> None:
    asked: list[str | None] = []
    server.tls, trusting = certificate(tmp_path, "pictures.example", "127.0.0.1")
    server.tls.sni_callback = lambda connection, name, context: asked.append(name)
    trusted = policy(tls=lambda: trusting)
    for host in ("pictures.example", "127.0.0.1"):
        body = fetch_http(f"https://{host}:{server.port}/a.png", trusted)
        assert body.startswith(b"\x89PNG")
    assert asked == ["pictures.example", None]  # an address is not sent as a name
    assert f"Host: pictures.example:{server.port}\r\n" in server.requests[0]
    for url, context in (("other.example", trusting), ("pictures.example", system_tls())):
        with pytest.raises(MediaFetchError, match="certificate is not valid"):
            fetch_http(f"https://{url}:{server.port}/a.png", policy(tls=lambda c=context: c))


def test_redirect_from_https_to_http_is_refused(server: Web, tmp_path: Path) -> None:
    server.tls, trusting = certificate(tmp_path, "pictures.example")
    server.routes |= {
        "/down": redirect(f"http://pictures.example:{server.port}/a.png"),
        "/on": redirect("/a.png"),
    }
    trusted = policy(tls=lambda: trusting)
    host = f"https://pictures.example:{server.port}"
    assert fetch_http(f"{host}/on", trusted).startswith(b"\x89PNG")
    with pytest.raises(MediaFetchError, match="from https to http"):
        fetch_http(f"{host}/down", trusted)


def test_server_without_tls_is_told(server: Web) -> None:
    server.greeting = b"220 mail.example ESMTP\r\n"
    with pytest.raises(MediaFetchError, match="no TLS connection can be made"):
        fetch_http(f"https://h.example:{server.port}/a.png", policy())


def test_handshake_that_never_ends_is_ended(server: Web) -> None:
    with pytest.raises(MediaFetchError, match="0.3 seconds"):
        # The server reads a request where a handshake begins, and waits for more of it.
        fetch_http(f"https://h.example:{server.port}/a.png", policy(timeout=0.3))


def test_fetches_run_side_by_side_and_leave_no_thread(server: Web) -> None:
    before = threading.active_count()
    bodies: list[bytes] = []
    threads = [
        threading.Thread(
            target=lambda: bodies.append(
                fetch_http(f"http://localhost:{server.port}/a.png", policy(resolver=resolve_v4))
            )
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bodies) == 8 and len(set(bodies)) == 1
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def resolve_v4(host: str, port: int) -> list[str]:
    return [address for address in resolve(host, port) if ":" not in address]
