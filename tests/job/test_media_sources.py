"""What is fetched again and what is not, and what the web may give, against real servers."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.engine.vl.web import Web, answer, redirect
from tests.job.faulty_s3 import FaultyS3, refuse
from vlmflow.job.errors import SpecError
from vlmflow.job.media import WEB_CACHE_SECONDS, MediaFetcher, make_fetcher
from vlmflow.job.media_cache import MediaCache
from vlmflow.job.record import Failure, FetchedImage, Record
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import StoreOpener
from vlmflow_engine.vl.fetch import MediaFetcher as WebFetcher

MAX_BYTES = 1000


def asking_for(*uris: str) -> Record:
    return Record(0, 1, "r1", None, uris, {}, {})


def data_of(result: list[FetchedImage] | Failure) -> list[bytes]:
    assert isinstance(result, list), result
    return [image.data for image in result]


def failure_of(result: list[FetchedImage] | Failure) -> Failure:
    assert isinstance(result, Failure), result
    assert result.stage == "fetch"
    return result


class Attempt:
    """Fetches as several attempts at a job would, one after the other, with one cache on disk."""

    def __init__(self, manifest: str, endpoint: str | None, folder: Path) -> None:
        self.manifest = manifest
        self.opener = StoreOpener(endpoint)
        self.folder = folder
        self.told: list[str] = []

    def fetch(self, *uris: str, max_bytes: int = MAX_BYTES) -> list[FetchedImage] | Failure:
        """Fetch with an empty memory, and leave when all is written."""
        fetcher, cache = self.fetcher(max_bytes)
        result = fetcher.fetch(asking_for(*uris))
        cache.flush()
        return result

    def fetcher(self, max_bytes: int = MAX_BYTES) -> tuple[MediaFetcher, MediaCache]:
        web = WebFetcher(
            max_image_bytes=max_bytes,
            is_allowed_address=lambda address: address == "127.0.0.1",
            timeout=0.5,
        )

        def fetch_web(url: str) -> bytes:
            data = web(url)
            assert isinstance(data, bytes)
            return data

        cache = MediaCache(self.folder, 1 << 20, self.told.append)
        fetcher = MediaFetcher(
            self.opener,
            self.manifest,
            max_image_bytes=max_bytes,
            cache=cache,
            fetch_web=fetch_web,
        )
        return fetcher, cache


@pytest.fixture
def on_s3(faulty_s3: FaultyS3, bucket: str, no_backoff: None, tmp_path: Path) -> Attempt:
    """Attempts at a manifest on S3, beside which lies an image."""
    attempt = Attempt(f"s3://{bucket}/in/m.jsonl", faulty_s3.url, tmp_path / "cache")
    attempt.opener.open(f"s3://{bucket}").write("in/a.png", b"image")
    return attempt


@pytest.fixture
def web() -> Iterator[Web]:
    """A web server that fetchers here may reach."""
    with Web() as server:
        server.routes["/a.png"] = answer(b"image")
        yield server


@pytest.fixture
def on_web(web: Web, tmp_path: Path) -> Attempt:
    """Attempts at a manifest in a folder whose images are on the web."""
    return Attempt(f"{tmp_path}/m.jsonl", None, tmp_path / "cache")


def bodies_sent(faulty_s3: FaultyS3) -> int:
    """How many GETs were not made on condition that the image has changed."""
    return sum("If-None-Match" not in seen for seen in faulty_s3.headers_seen("GET"))


def test_image_that_was_fetched_once_is_not_sent_again(on_s3: Attempt, faulty_s3: FaultyS3) -> None:
    for _ in range(3):  # each with an empty memory
        assert data_of(on_s3.fetch("a.png")) == [b"image"]
    # One request each, and only the first has a body to answer with.
    assert len(faulty_s3.headers_seen("GET")) == 3
    assert bodies_sent(faulty_s3) == 1
    assert faulty_s3.headers_seen("HEAD") == []


def test_image_that_has_changed_is_fetched_in_the_same_request(
    on_s3: Attempt, faulty_s3: FaultyS3, bucket: str
) -> None:
    on_s3.fetch("a.png")
    on_s3.opener.open(f"s3://{bucket}").write("in/a.png", b"other")
    for _ in range(2):
        [image] = on_s3.fetch("a.png")
        assert image.data == b"other"
    assert len(faulty_s3.headers_seen("GET")) == 3


def test_records_with_the_same_image_cost_one_request(
    on_s3: Attempt, faulty_s3: FaultyS3, bucket: str
) -> None:
    fetcher, _ = on_s3.fetcher()
    names = ["a.png", f"s3://{bucket}/in/a.png"] * 8
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda name: fetcher.fetch(asking_for(name)), names))
    assert [data_of(result) for result in results] == [[b"image"]] * 16
    assert [result[0].uri for result in results] == names
    assert len(faulty_s3.headers_seen("GET")) == 1


def test_broken_file_of_the_cache_is_fetched_again(on_s3: Attempt, faulty_s3: FaultyS3) -> None:
    on_s3.fetch("a.png")
    [path] = on_s3.folder.glob("objects/*/*")
    path.write_bytes(path.read_bytes()[:-1] + b"E")
    assert data_of(on_s3.fetch("a.png")) == [b"image"]
    assert bodies_sent(faulty_s3) == 2
    assert path.read_bytes().endswith(b"image")


def test_cache_shows_nobody_what_he_may_not_read(on_s3: Attempt, faulty_s3: FaultyS3) -> None:
    on_s3.fetch("a.png")
    faulty_s3.always("GET", refuse(403, "AccessDenied"))
    failure = failure_of(on_s3.fetch("a.png"))
    assert failure.error_class == "image_forbidden"


def test_deleted_image_is_not_found_although_the_cache_has_it(on_s3: Attempt, bucket: str) -> None:
    on_s3.fetch("a.png")
    on_s3.opener.open(f"s3://{bucket}").delete("in/a.png")
    failure = failure_of(on_s3.fetch("a.png"))
    assert failure.error_class == "image_not_found"


@pytest.mark.parametrize("kind", ["s3", "web"])
def test_limit_on_bytes_holds_for_what_is_in_the_cache(
    kind: str, web: Web, request: pytest.FixtureRequest
) -> None:
    attempt: Attempt = request.getfixturevalue(f"on_{kind}")
    uri = "a.png" if kind == "s3" else f"{web.url}/a.png"
    assert data_of(attempt.fetch(uri, max_bytes=5)) == [b"image"]
    failure = failure_of(attempt.fetch(uri, max_bytes=4))
    assert failure.error_class == "image_too_large"


def test_cache_that_cannot_be_written_harms_no_record(on_s3: Attempt) -> None:
    on_s3.folder.write_bytes(b"no folder")
    for _ in range(2):
        assert data_of(on_s3.fetch("a.png", "a.png")) == [b"image"] * 2
    assert len(on_s3.told) == 2  # once each


def test_files_of_this_machine_are_read_each_time_and_not_copied(
    on_web: Attempt, tmp_path: Path
) -> None:
    fetcher, _ = on_web.fetcher()
    for data in (b"one", b"two"):
        (tmp_path / "a.png").write_bytes(data)
        assert data_of(fetcher.fetch(asking_for("a.png"))) == [data]
    assert not on_web.folder.exists()


def test_image_on_the_web_is_fetched_if_that_is_allowed(on_web: Attempt, web: Web) -> None:
    [image] = on_web.fetch(f"  {web.url}/a.png?signature=SECRET")
    assert image.data == b"image"
    assert image.uri == f"{web.url}/a.png"


def test_image_on_the_web_is_not_fetched_again_for_a_day(
    on_web: Attempt, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{web.url}/a.png?signature=SECRET"
    for _ in range(2):
        assert data_of(on_web.fetch(uri)) == [b"image"]
    assert len(web.requests) == 1
    later = time.time() + WEB_CACHE_SECONDS + 1
    monkeypatch.setattr("time.time", lambda: later)
    web.routes["/a.png"] = answer(b"other")
    assert data_of(on_web.fetch(uri)) == [b"other"]
    assert len(web.requests) == 2


@pytest.mark.parametrize(
    ("status", "error_class", "retryable"),
    [
        ("404 Not Found", "image_not_found", False),
        ("403 Forbidden", "image_forbidden", False),
        ("400 Bad Request", "image_unreachable", False),
        ("503 Busy", "image_busy", True),
    ],
)
def test_what_the_web_answers_decides_the_class_of_failure(
    status: str, error_class: str, retryable: bool, on_web: Attempt, web: Web
) -> None:
    web.routes["/b.png"] = answer(status=status)
    failure = failure_of(on_web.fetch(f"{web.url}/b.png?sig=SECRET"))
    assert (failure.error_class, failure.retryable) == (error_class, retryable)
    assert "SECRET" not in failure.message


def test_image_on_the_web_may_be_too_large_too_slow_or_lead_away(on_web: Attempt, web: Web) -> None:
    web.routes["/large"] = answer(bytes(MAX_BYTES + 1))
    web.routes["/slow"] = lambda talk: talk.drip(b"HTTP/1.1 200 OK\r\n", 10)
    web.routes["/away"] = redirect("http://10.0.0.1/a.png")
    classes = [
        failure_of(on_web.fetch(f"{web.url}{path}")).error_class
        for path in ("/large", "/slow", "/away")
    ]
    assert classes == ["image_too_large", "image_busy", "image_forbidden"]


def spec_of(**media: object) -> JobSpec:
    values = {"manifest": "s3://own/m.jsonl", "model": "/m", "output": "/o", "media": media}
    return JobSpec.parse(values)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433"])
def test_job_that_allows_the_web_allows_neither_this_machine_nor_its_network(
    host: str, web: Web, tmp_path: Path
) -> None:
    for domains in (None, [host.strip("[]")] if not host.isdigit() else None):
        spec = spec_of(
            allow_http=True, allowed_media_domains=domains, cache=str(tmp_path / "cache")
        )
        fetcher = make_fetcher(spec, StoreOpener(), print)
        failure = failure_of(fetcher.fetch(asking_for(f"http://{host}:{web.port}/a.png")))
        assert failure.error_class in ("image_forbidden", "image_unreachable")
    assert web.num_connections == 0


def test_host_that_is_not_listed_is_forbidden(tmp_path: Path) -> None:
    spec = spec_of(
        allow_http=True, allowed_media_domains=["good.example"], cache=str(tmp_path / "cache")
    )
    fetcher = make_fetcher(spec, StoreOpener(), print)
    failure = failure_of(fetcher.fetch(asking_for("https://bad.example/a.png")))
    assert failure.error_class == "image_forbidden"
    assert "allowed_media_domains" in failure.message


def test_domain_that_is_none_is_told_before_anything_begins() -> None:
    spec = spec_of(allow_http=True, allowed_media_domains=["https://h.example/x"])
    with pytest.raises(SpecError, match="allowed_media_domains holds host names"):
        make_fetcher(spec, StoreOpener(), print)


def test_machine_without_a_home_has_no_cache_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    make_fetcher(spec_of(), StoreOpener(), told.append)
    [sentence] = told
    assert "--media-cache" in sentence
    make_fetcher(spec_of(cache_bytes=0), StoreOpener(), told.append)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("uris", "is_refused"),
    [
        (["s3://other/a.png", "s3://other/b.png"], True),
        (["https://h.example/a.png"], True),
        (["s3://other/a.png", "data:image/png;base64,AA=="], True),
        (["s3://other/a.png", "a.png"], False),
        (["data:image/png;base64,AA=="], False),
        ([], False),
    ],
)
def test_option_that_was_forgotten_is_told_before_anything_begins(
    uris: list[str], is_refused: bool
) -> None:
    fetcher = make_fetcher(spec_of(), StoreOpener(), print)
    records = [asking_for(), *(asking_for(uri) for uri in uris)]
    if is_refused:
        with pytest.raises(SpecError, match="--allow-"):
            fetcher.check_places(records)
    else:
        fetcher.check_places(records)
