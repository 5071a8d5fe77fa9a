"""What is S3's own: a network that fails, answers that get lost, credentials that stay secret."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.job.conftest import SECRET_KEY
from tests.job.faulty_s3 import (
    FaultyS3,
    add_query,
    cut,
    do_but_refuse,
    lose_answer,
    refuse,
)
from vlmflow.job.errors import SpecError, StoreError
from vlmflow.job.store import ObjectMissingError, Store, StoreOpener
from vlmflow.job.store.base import ObjectChangedError, ObjectForbiddenError
from vlmflow_engine.errors import VlmflowError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MIB = 1 << 20
SIGNATURE = "f0e4c2f76c58916ec258f246851bea091d14d4247a2fc3e18694461b1816e13b"

# Each verb, and the HTTP method of its first request.
VERBS: dict[str, tuple[str, Callable[[Store], object]]] = {
    "stat": ("HEAD", lambda store: store.stat("key")),
    "read": ("GET", lambda store: store.read("key")),
    "stream": ("HEAD", lambda store: list(store.stream("key"))),
    "create": ("PUT", lambda store: store.create("key", b"x")),
    "write": ("PUT", lambda store: store.write("key", b"x")),
    "write_file": ("PUT", lambda store: store.write_file("key", Path(__file__))),
    "delete": ("DELETE", lambda store: store.delete("key")),
    "list": ("GET", lambda store: list(store.list(""))),
}

pytestmark = pytest.mark.usefixtures("no_backoff")


@pytest.fixture
def direct(opener: StoreOpener, faulty_store: Store) -> Store:
    """The same store, on a way without faults."""
    return opener.open(faulty_store.uri)


def body(num_bytes: int) -> bytes:
    """Bytes of which no two stretches are alike, so that a seam in the wrong place shows."""
    return b"".join(b"%07x " % n for n in range(-(-num_bytes // 8)))[:num_bytes]


@pytest.mark.parametrize("verb", VERBS)
def test_server_that_is_busy_is_asked_again(
    verb: str, direct: Store, faulty_store: Store, faulty_s3: FaultyS3
) -> None:
    direct.write("key", b"x")
    method, call = VERBS[verb]
    faulty_s3.next(method, refuse(503, "SlowDown"), times=2)
    faulty_s3.next(method, refuse(500, "InternalError"), times=2)
    call(faulty_store)
    assert len(faulty_s3.headers_seen(method)) == 5


@pytest.mark.parametrize("verb", VERBS)
def test_server_that_stays_busy_is_given_up_in_one_sentence(
    verb: str, faulty_store: Store, faulty_s3: FaultyS3
) -> None:
    method, call = VERBS[verb]
    faulty_s3.always(method, refuse(503, "SlowDown"))
    with pytest.raises(StoreError, match=r"s3://bucket-\w+/some/where") as caught:
        call(faulty_store)
    assert caught.value.exit_code == 75
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("verb", VERBS)
def test_server_that_is_not_there_is_a_store_error(verb: str, bucket: str) -> None:
    store = StoreOpener("http://127.0.0.1:9").open(f"s3://{bucket}")
    with pytest.raises(StoreError, match="S3 does not answer"):
        VERBS[verb][1](store)


@pytest.mark.parametrize("verb", ["read", "stream"])
def test_body_that_breaks_off_is_read_whole(
    verb: str, direct: Store, faulty_store: Store, faulty_s3: FaultyS3
) -> None:
    data = body(3 * MIB + 5)
    direct.write("key", data)
    faulty_s3.next("GET", cut(0))
    faulty_s3.next("GET", cut(2 * MIB + 100))
    result = faulty_store.read("key") if verb == "read" else b"".join(faulty_store.stream("key"))
    assert result == data


def test_stream_that_breaks_off_goes_on_where_it_did(
    direct: Store, faulty_store: Store, faulty_s3: FaultyS3
) -> None:
    direct.write("key", body(5 * MIB))
    faulty_s3.next("GET", cut(3 * MIB))
    assert b"".join(faulty_store.stream("key")) == body(5 * MIB)
    ranges = [headers["Range"] for headers in faulty_s3.headers_seen("GET")]
    assert ranges == ["bytes=0-", f"bytes={3 * MIB}-"]


def test_stream_may_break_off_often_as_long_as_it_gets_on(
    direct: Store, faulty_store: Store, faulty_s3: FaultyS3
) -> None:
    # A manifest is read for hours, in fits and starts, and a server does not wait.
    direct.write("key", body(9 * MIB))
    faulty_s3.next("GET", cut(MIB), times=8)
    assert b"".join(faulty_store.stream("key")) == body(9 * MIB)


@pytest.mark.parametrize("verb", ["read", "stream"])
def test_body_that_always_breaks_off_is_given_up(
    verb: str, direct: Store, faulty_store: Store, faulty_s3: FaultyS3
) -> None:
    direct.write("key", body(1000))
    faulty_s3.always("GET", cut(0))
    with pytest.raises(StoreError, match="where/key: S3 "):
        VERBS[verb][1](faulty_store)


def test_stream_of_an_object_that_is_replaced_meanwhile_mixes_no_two(
    direct: Store, faulty_store: Store, faulty_s3: FaultyS3
) -> None:
    direct.write("key", b"a" * 3 * MIB)
    faulty_s3.next("GET", cut(MIB))
    stream = faulty_store.stream("key")
    assert next(stream) == b"a" * MIB
    direct.write("key", b"b" * 3 * MIB)
    with pytest.raises(ObjectChangedError):
        list(stream)


@pytest.mark.parametrize(
    "fault", [lose_answer, do_but_refuse(412, "PreconditionFailed"), do_but_refuse(500, "Oops")]
)
def test_creator_whose_answer_was_lost_learns_that_it_won(
    fault: Callable, direct: Store, faulty_store: Store, faulty_s3: FaultyS3
) -> None:
    faulty_s3.next("PUT", fault)
    assert faulty_store.create("key", b"ours")
    assert direct.read("key") == b"ours"
    assert not faulty_store.create("key", b"another's")


def test_creator_whose_request_was_lost_does_not_claim_what_another_wrote(
    direct: Store, faulty_store: Store, faulty_s3: FaultyS3
) -> None:
    direct.create("key", b"another's")
    faulty_s3.next("PUT", refuse(500, "InternalError"))
    assert not faulty_store.create("key", b"ours")


def test_creators_in_conflict_try_again(
    direct: Store, faulty_store: Store, faulty_s3: FaultyS3
) -> None:
    faulty_s3.next("PUT", refuse(409, "ConditionalRequestConflict"), times=2)
    assert faulty_store.create("key", b"ours")
    assert direct.read("key") == b"ours"
    faulty_s3.always("PUT", refuse(409, "ConditionalRequestConflict"))
    with pytest.raises(StoreError, match="conflict"):
        faulty_store.create("other", b"ours")


def test_store_without_conditional_writes_still_refuses_the_second(
    direct: Store, faulty_store: Store, faulty_s3: FaultyS3
) -> None:
    faulty_s3.next("PUT", refuse(501, "NotImplemented"))
    assert faulty_store.create("key", b"ours")
    faulty_s3.next("PUT", refuse(501, "NotImplemented"))
    assert not faulty_store.create("key", b"another's")
    assert direct.read("key") == b"ours"


def test_list_goes_on_over_all_pages(
    direct: Store, faulty_store: Store, faulty_s3: FaultyS3
) -> None:
    keys = [f"{number:03d}" for number in range(7)]
    for key in keys:
        direct.write(key, b"")
    faulty_s3.always("GET", add_query("max-keys=3"))
    assert list(faulty_store.list("")) == keys
    assert len(faulty_s3.headers_seen("GET")) == 3


@pytest.mark.parametrize("verb", ["create", "write", "write_file"])
@pytest.mark.parametrize(
    "key, content_type",
    [
        ("report.html", "text/html; charset=utf-8"),
        ("report.json", "application/json"),
        ("part.parquet", "binary/octet-stream"),
        ("v1.html/key", "binary/octet-stream"),
    ],
)
def test_a_browser_is_told_what_is_a_page(
    key: str,
    content_type: str,
    verb: str,
    bucket: str,
    opener: StoreOpener,
    s3_client: "S3Client",
) -> None:
    store = opener.open(f"s3://{bucket}")
    if verb == "write_file":
        store.write_file(key, Path(__file__))
    else:
        getattr(store, verb)(key, b"x")
    assert s3_client.head_object(Bucket=bucket, Key=key)["ContentType"] == content_type


@pytest.mark.parametrize("verb", VERBS)
def test_object_without_permission_is_forbidden(
    verb: str, faulty_store: Store, faulty_s3: FaultyS3
) -> None:
    method, call = VERBS[verb]
    faulty_s3.always(method, refuse(403, "AccessDenied"))
    with pytest.raises(ObjectForbiddenError, match="access denied"):
        call(faulty_store)


@pytest.mark.parametrize("verb", ["read", "create", "write", "write_file", "delete", "list"])
def test_bucket_that_does_not_exist_is_named(verb: str, opener: StoreOpener) -> None:
    with pytest.raises(ObjectMissingError, match="bucket 'nowhere' does not exist"):
        VERBS[verb][1](opener.open("s3://nowhere/prefix"))


def test_job_without_credentials_is_told_what_to_set(
    s3_endpoint: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it has read them already
    store = StoreOpener(s3_endpoint).open(f"s3://{bucket}")
    for _, call in VERBS.values():
        with pytest.raises(SpecError, match="set AWS_ACCESS_KEY_ID") as caught:
            call(store)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("endpoint", ["no url", "", "localhost:9000", "http://"])
def test_endpoint_that_is_no_url_is_a_wrong_option(endpoint: str, aws_environment: None) -> None:
    with pytest.raises(SpecError, match=f"cannot reach S3 at '{endpoint}'"):
        StoreOpener(endpoint).open("s3://bucket")


@pytest.mark.parametrize(
    "code",
    ["SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "AccessDenied", "Unheard"],
)
def test_no_message_holds_a_secret(code: str, faulty_store: Store, faulty_s3: FaultyS3) -> None:
    # Servers like to repeat what they were sent.
    said = f"{SECRET_KEY} http://host/bucket/key?X-Amz-Signature={SIGNATURE}"
    for method, call in VERBS.values():
        faulty_s3.always(method, refuse(403, code, said))
        with pytest.raises(VlmflowError) as caught:
            call(faulty_store)
        assert SECRET_KEY not in str(caught.value)
        assert SIGNATURE not in str(caught.value)


def test_waiting_for_a_stream_keeps_no_thread_from_the_store(
    direct: Store, faulty_store: Store
) -> None:
    direct.write("key", body(4 * MIB))
    stream = faulty_store.stream("key")
    next(stream)
    assert faulty_store.read("key") == body(4 * MIB)
    stream.close()
