"""URLs are read in one way only, and messages show none of their secrets."""

import pytest

from vlmflow_engine.errors import MediaFetchError
from vlmflow_engine.vl.url import MAX_URL_LENGTH, normalise_host, parse_http_url


@pytest.mark.parametrize(
    ("text", "host_header", "target"),
    [
        ("http://host", "host", "/"),
        ("HTTP://HOST.Example./a", "host.example", "/a"),
        ("https://host:443/a", "host", "/a"),
        ("https://host:80/a", "host:80", "/a"),
        ("http://host/a?b=c&d=%20#e", "host", "/a?b=c&d=%20"),
        ("http://host/a b%20c/\u00e9\\x.png", "host", "/a%20b%20c/%C3%A9%5Cx.png"),
        ("http://host?a=\u00e9", "host", "/?a=%C3%A9"),
        ("http://b\u00fccher.example/", "xn--bcher-kva.example", "/"),
        ("http://8.8.8.8:8080/", "8.8.8.8:8080", "/"),
        ("http://[2606:4700:0:0::1111]/", "[2606:4700::1111]", "/"),
        ("http://[::FFFF:8.8.8.8]:81/", "[::ffff:808:808]:81", "/"),
        ("http://a_b-c.example/", "a_b-c.example", "/"),
    ],
)
def test_url_is_brought_into_its_one_form(text: str, host_header: str, target: str) -> None:
    url = parse_http_url(text)
    assert (url.host_header, url.target) == (host_header, target)
    assert parse_http_url(f"{url.scheme}://{url.host_header}{url.target}") == url


@pytest.mark.parametrize(
    "text",
    [
        *("http://", "http:///SECRET", "http://?SECRET", "http://#SECRET", "https://:80/SECRET"),
        *("http://user:SECRET@host/", "http://SECRET@host/", "http://good.example@127.0.0.1/"),
        *("http://@host/", "http://host\\@other/SECRET", "http://host\\SECRET/"),
        *("http://host:0/SECRET", "http://host:65536/SECRET", "http://host:x/SECRET"),
        *("http://host:-1/SECRET", "http://host:80:80/SECRET"),
        *("http://ho st/SECRET", "http://host/SECRET\r\nX: y", "http://ho\tst/SECRET"),
        *("http://host/SECRET\0", "http://host/SECRET\x7f", "http://host/SECRET\ud800"),
        *("http://host\r\n/SECRET", "http://ho%73t/SECRET", "http://host;x/SECRET"),
        *("http://a..b/SECRET", "http://.a/SECRET", "http://-a/SECRET", "http://*/SECRET"),
        *(f"http://{'a' * 64}/SECRET", f"http://{'a.' * 127}a/SECRET"),
        *("http://[::1/SECRET", "http://[x]/SECRET", "http://[::1]SECRET/", "http://[]/SECRET"),
        *("http://[fe80::1%25eth0]/SECRET", "http://[fe80::1%eth0]/SECRET"),
        *("http://2130706433/SECRET", "http://0x7f000001/SECRET", "http://017700000001/SECRET"),
        *("http://0x7f.0.0.1/SECRET", "http://127.1/SECRET", "http://0177.0.0.1/SECRET"),
        *("http://1.2.3.256/SECRET", "http://1.2.3.4.5/SECRET", "http://host.0x1/SECRET"),
        *("http://\uff11\uff12\uff17.1/SECRET", "http://host\uff0fSECRET/", "http://\u2100/SECRET"),
        *("ftp://host/SECRET", "file:///SECRET", "//host/SECRET", "gopher://host/SECRET"),
        f"http://host/SECRET{'x' * MAX_URL_LENGTH}",
    ],
    ids=lambda text: ascii(text[:40]),
)
def test_url_that_can_be_read_in_two_ways_is_refused_without_its_secrets(text: str) -> None:
    with pytest.raises(MediaFetchError) as caught:
        parse_http_url(text)
    assert "SECRET" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_message_shows_neither_query_nor_fragment_nor_parameters() -> None:
    url = parse_http_url("https://host/a/b.png;id=SECRET?sig=SECRET#SECRET")
    assert url.shown == "https://host/a/b.png"


def test_message_shows_a_long_path_by_its_ends() -> None:
    shown = parse_http_url(f"https://host/start{'x' * 5_000}end.png?sig=SECRET").shown
    assert len(shown) < 120
    assert shown.startswith("https://host/start") and shown.endswith("end.png")


@pytest.mark.parametrize(
    ("location", "followed"),
    [
        ("/b?c=1", "http://host/b?c=1"),
        ("b", "http://host/dir/b"),
        ("?c", "http://host/dir/a?c"),
        ("//other/b", "http://other/b"),
        ("https://other:8443/b#c", "https://other:8443/b"),
        ("/\u00c3\u00a9", "http://host/%C3%A9"),  # the UTF-8 of an accent, read as Latin-1
    ],
)
def test_redirect_is_followed_from_where_it_stands(location: str, followed: str) -> None:
    url = parse_http_url("http://host/dir/a?sig=1").follow(location)
    assert f"{url.scheme}://{url.host_header}{url.target}" == followed


@pytest.mark.parametrize(
    "location",
    [
        *("file:///etc/SECRET", "ftp://host/SECRET", "data:image/png;base64,SECRET"),
        *("javascript:SECRET", "http://user:SECRET@host/", "http://[SECRET", "gopher://x/SECRET"),
        *("http://0x7f.1/SECRET", "http://host/\x01SECRET", "http:\\\\SECRET\\"),
        *("/\\SECRET", "https:SECRET", "http:/SECRET", "HTTP:SECRET"),
    ],
)
def test_redirect_to_anything_but_a_plain_http_url_is_refused(location: str) -> None:
    with pytest.raises(MediaFetchError) as caught:
        parse_http_url("http://host/dir/a?sig=SECRET").follow(location)
    assert "SECRET" not in str(caught.value)


def test_names_of_a_host_that_differ_in_writing_are_one() -> None:
    names = {normalise_host(name) for name in ("B\u00fccher.example", "xn--BCHER-kva.example.")}
    assert names == {"xn--bcher-kva.example"}
