"""Images are had from where a manifest may send us, and from nowhere else."""

import base64
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from tests.job.faulty_s3 import FaultyS3, refuse
from vlmflow.job import outcomes
from vlmflow.job.media import MediaFetcher
from vlmflow.job.record import Failure, FetchedImage, Record
from vlmflow.job.spec import Media
from vlmflow.job.store import Store, StoreOpener

MAX_BYTES = 1000
IMAGE = bytes(range(256))
Fetch = Callable[..., list[FetchedImage] | Failure]


def asking_for(*uris: str) -> Record:
    return Record(0, 1, "r1", None, uris, {}, {})


@pytest.fixture
def fetch(root: str, opener: StoreOpener) -> Fetch:
    """Fetch images for a manifest that stands below `root`, of either kind."""
    fetcher = MediaFetcher(opener, f"{root}/in/m.jsonl", max_image_bytes=MAX_BYTES)
    return lambda *uris: fetcher.fetch(asking_for(*uris))


@pytest.fixture
def fetch_from_folder(tmp_path: Path) -> Fetch:
    """The same for a manifest in `tmp_path`."""
    fetcher = MediaFetcher(StoreOpener(), f"{tmp_path}/m.jsonl", max_image_bytes=MAX_BYTES)
    return lambda *uris: fetcher.fetch(asking_for(*uris))


@pytest.fixture
def fetch_from_s3(faulty_s3: FaultyS3, bucket: str, no_backoff: None) -> Fetch:
    """The same for a manifest on a server on which things go wrong."""
    opener = StoreOpener(faulty_s3.url)
    fetcher = MediaFetcher(opener, f"s3://{bucket}/m.jsonl", max_image_bytes=MAX_BYTES)
    return lambda *uris: fetcher.fetch(asking_for(*uris))


def data_url(data: bytes, head: str = "data:image/png;base64") -> str:
    return f"{head},{base64.b64encode(data).decode()}"


def failure_of(result: list[FetchedImage] | Failure) -> Failure:
    assert isinstance(result, Failure), result
    assert result.stage == "fetch"
    return result


def test_images_come_in_the_records_order_with_their_digests(fetch: Fetch, store: Store) -> None:
    store.write("in/a.png", b"a")
    store.write("in/deep/b c#1.png", b"b")
    data = data_url(IMAGE)
    assert fetch("deep/b c#1.png", f"{store.uri}/in/a.png", data, "a.png") == [
        FetchedImage("deep/b c#1.png", b"b", sha256(b"b").hexdigest()),
        FetchedImage(f"{store.uri}/in/a.png", b"a", sha256(b"a").hexdigest()),
        FetchedImage("data:image/png;base64", IMAGE, sha256(IMAGE).hexdigest()),
        FetchedImage("a.png", b"a", sha256(b"a").hexdigest()),
    ]


def test_record_without_images_has_none(fetch: Fetch) -> None:
    assert fetch() == []


def test_threads_may_share_a_fetcher(fetch: Fetch, store: Store) -> None:
    for number in range(8):
        store.write(f"in/{number}.png", b"%d" % number)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda number: fetch(f"{number}.png"), range(8)))
    assert [[image.data for image in images] for images in results] == [
        [b"%d" % number] for number in range(8)
    ]


def test_first_image_that_cannot_be_had_is_the_records_failure(fetch: Fetch, store: Store) -> None:
    store.write("in/a.png", b"a")
    failure = failure_of(fetch("a.png", "b.png", "c.png"))
    assert failure.error_class == "image_not_found"
    assert "b.png does not exist" in failure.message
    assert not failure.retryable


def test_image_up_to_the_limit_is_taken_and_a_larger_one_is_not(fetch: Fetch, store: Store) -> None:
    for name, num_bytes in (("fits", MAX_BYTES), ("large", MAX_BYTES + 1)):
        store.write(f"in/{name}", bytes(num_bytes))
        for uri in (name, data_url(bytes(num_bytes))):
            result = fetch(uri)
            if name == "fits":
                assert isinstance(result, list)
            else:
                assert failure_of(result).error_class == "image_too_large"
                assert "1,000" in result.message


@pytest.mark.parametrize(
    ("url", "data"),
    [
        (data_url(IMAGE, "DATA:image/png;base64"), IMAGE),
        (data_url(IMAGE, "data:;base64"), IMAGE),
        (data_url(IMAGE, "data:image/png;name=a.png;base64"), IMAGE),
        ("data:image/png;base64,", b""),
    ],
)
def test_data_url_holds_its_image(url: str, data: bytes, fetch_from_folder: Fetch) -> None:
    [image] = fetch_from_folder(url)
    assert image.data == data
    assert url.startswith(image.uri) and "," not in image.uri


@pytest.mark.parametrize(
    "url",
    [
        *("data:", "data:image/png", "data:image/png,raw", "data:image/png;base64"),
        *("data:image/png;base64,@@@@", "data:image/png;base64,YWJ", "data:;base64,YWJj\n"),
        *("data:;base64,\u00e9\u00e9\u00e9\u00e9", f"data:{'x' * 5000}", f"data:{'x' * 5000},y"),
    ],
    ids=lambda url: url[:30],
)
def test_data_url_that_holds_no_image_is_told_in_short(url: str, fetch_from_folder: Fetch) -> None:
    failure = failure_of(fetch_from_folder(url))
    assert failure.error_class == "image_corrupt"
    assert len(failure.message) < 100
    [image] = outcomes.failure(asking_for(url), failure).line["images"]
    assert len(image["uri"]) < 100


@pytest.mark.parametrize(
    "url", ["http://host/a.png", "https://host/a.png?x=1", "HTTPS://host/a.png"]
)
def test_image_on_the_web_is_refused(url: str, fetch: Fetch) -> None:
    failure = failure_of(fetch(url))
    assert failure.error_class == "image_forbidden"
    assert url.partition("?")[0].lower() in failure.message.lower()
    assert "not fetched over http(s); put them on S3" in failure.message


@pytest.mark.parametrize(
    "url",
    [
        "https://bucket.s3.amazonaws.com/a.png?X-Amz-Credential=SECRET&X-Amz-Signature=SECRET",
        "HTTP://host/a.png?sig=SECRET",
        "https://user:SECRET@host/a.png",
        "https://host/a.png#SECRET",
        " https://host/a.png?sig=SECRET",
        "\nhttps://host/a.png?sig=SECRET",
        "https://[host/a.png?sig=SECRET",
        "gs://bucket/a.png?X-Goog-Signature=SECRET",
        "abfss://container@account/a.png?sig=SECRET",
    ],
)
def test_signature_in_a_url_is_in_no_line_of_ours(url: str, fetch: Fetch) -> None:
    failure = failure_of(fetch(url))
    assert failure.error_class == "image_forbidden"
    assert "SECRET" not in failure.message
    assert "SECRET" not in json.dumps(outcomes.failure(asking_for(url), failure).line)


@pytest.mark.parametrize("form", ["path", "file URI", "FILE URI"])
def test_manifest_on_s3_may_not_name_a_file_of_this_machine(
    form: str, bucket: str, opener: StoreOpener, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"private")
    uris = {"path": str(path), "file URI": path.as_uri(), "FILE URI": f"FILE://{path}"}
    fetcher = MediaFetcher(opener, f"s3://{bucket}/m.jsonl", max_image_bytes=MAX_BYTES)
    failure = failure_of(fetcher.fetch(asking_for(uris[form])))
    assert failure.error_class == "image_forbidden"
    assert "may name s3:// images only" in failure.message


@pytest.mark.parametrize("form", ["path", "file URI", "relative"])
def test_manifest_in_a_folder_may_name_files(
    form: str, fetch_from_folder: Fetch, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"a")
    uri = {"path": str(path), "file URI": path.as_uri(), "relative": "a.png"}[form]
    [image] = fetch_from_folder(uri)
    assert (image.uri, image.data) == (uri, b"a")


def test_manifest_in_a_folder_may_name_images_on_s3_that_the_job_lists(
    tmp_path: Path, bucket: str, opener: StoreOpener
) -> None:
    opener.open(f"s3://{bucket}").write("a.png", b"a")
    for allowed in ((), (f"s3://{bucket}",)):
        fetcher = MediaFetcher(
            opener,
            f"{tmp_path}/m.jsonl",
            max_image_bytes=MAX_BYTES,
            media=Media(allowed_s3=allowed),
        )
        result = fetcher.fetch(asking_for(f"s3://{bucket}/a.png"))
        if allowed:
            assert [image.data for image in result] == [b"a"]
        else:
            failure = failure_of(result)
            assert failure.error_class == "image_forbidden"
            assert f"--allow-s3 s3://{bucket}" in failure.message


@pytest.mark.parametrize(
    "uri",
    [
        *("a\0b.png", "file://[/a.png", "~nobody-of-this-name/a.png", "file:///"),
        *("", ".", "..", "gs://bucket/a.png", "ftp://host/a.png", "s3://", "s3:///a.png"),
        *("s3://bucket", "m.jsonl/a.png", "/dev/full/x"),
    ],
    ids=lambda uri: repr(uri)[:30],
)
def test_name_that_cannot_be_an_image_fails_its_record_and_no_more(
    uri: str, aws_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.jsonl").touch()
    for manifest in ("m.jsonl", f"{tmp_path}/m.jsonl", f"file://{tmp_path}/m.jsonl"):
        fetcher = MediaFetcher(StoreOpener(), manifest, max_image_bytes=MAX_BYTES)
        failure = failure_of(fetcher.fetch(asking_for(uri)))
        assert not failure.retryable


@pytest.mark.parametrize("uri", ["a\0b.png", "../a.png", "x" * 1100, "s3://No_Bucket!/a.png"])
def test_key_that_cannot_be_one_fails_its_record_and_no_more(
    uri: str, bucket: str, opener: StoreOpener
) -> None:
    fetcher = MediaFetcher(opener, f"s3://{bucket}/m.jsonl", max_image_bytes=MAX_BYTES)
    failure = failure_of(fetcher.fetch(asking_for(uri)))
    assert not failure.retryable


@pytest.mark.timeout(5)
def test_file_that_never_ends_or_never_begins_holds_nobody_up(
    fetch_from_folder: Fetch, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for uri in ("/dev/zero", "pipe"):
        failure_of(fetch_from_folder(uri))


def test_image_without_permission_is_forbidden(fetch_from_s3: Fetch, faulty_s3: FaultyS3) -> None:
    faulty_s3.always("GET", refuse(403, "AccessDenied"))
    failure = failure_of(fetch_from_s3("a.png"))
    assert failure.error_class == "image_forbidden"
    assert "a.png: access denied" in failure.message
    assert not failure.retryable


def test_server_that_stays_busy_may_be_asked_again(
    fetch_from_s3: Fetch, faulty_s3: FaultyS3
) -> None:
    faulty_s3.always("GET", refuse(503, "SlowDown"))
    failure = failure_of(fetch_from_s3("a.png"))
    assert failure.error_class == "image_unreachable"
    assert failure.retryable
