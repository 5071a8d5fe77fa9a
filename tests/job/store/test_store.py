"""Both kinds of store keep the promises of the protocol."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from uuid import uuid4

import pytest

from vlmflow.job.store import ObjectMissingError, Store, StoreOpener
from vlmflow.job.store.base import ObjectChangedError, ObjectTooLargeError

CONTENTS = [b"", b"x", b"\r\n\0\xff" * 800_001]
KEYS = ["a b", "a/b/c.json", "\u00fc\u65e5\U0001f600", "q?x=1#y", "50%41+", "'\"<&>", "a:b@c=d;e,f"]


@pytest.mark.parametrize("way", ["create", "write", "write_file"])
@pytest.mark.parametrize("data", CONTENTS, ids=len)
def test_what_was_written_is_read_back(data: bytes, way: str, store: Store, tmp_path: Path) -> None:
    if way == "write_file":
        (tmp_path / "source").write_bytes(data)
        store.write_file("key", tmp_path / "source")
    else:
        getattr(store, way)("key", data)
    assert store.read("key") == data
    assert b"".join(store.stream("key")) == data
    assert store.stat("key").num_bytes == len(data)
    assert store.stat("key").key == "key"


def test_any_name_will_do_for_a_key(store: Store) -> None:
    for key in KEYS:
        assert store.create(key, key.encode())
    assert {key: store.read(key) for key in KEYS} == {key: key.encode() for key in KEYS}
    assert set(store.list("")) == set(KEYS)


def test_write_replaces_what_is_there(store: Store) -> None:
    store.write("key", b"longer than the next")
    store.write("key", b"next")
    assert store.read("key") == b"next"


def test_reader_never_sees_half_of_a_write(store: Store) -> None:
    versions = [letter * 500_000 for letter in (b"a", b"b")]
    store.write("key", versions[0])
    is_over = Event()

    def write() -> None:
        for number in range(12):
            store.write("key", versions[number % 2])
        is_over.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not is_over.is_set() and not writing.done():
            assert store.read("key") in versions
        writing.result()


@pytest.mark.parametrize("verb", ["stat", "read", "stream"])
def test_object_that_is_not_there_is_missing(verb: str, store: Store) -> None:
    store.write("there/too", b"")
    for key in ("not/there", "there/too/not", "ther"):
        with pytest.raises(ObjectMissingError, match=key):
            result = getattr(store, verb)(key)
            list(result)  # a stream begins when it is read


def test_first_creator_wins_and_its_object_stays(store: Store) -> None:
    assert store.create("key", b"first")
    assert not store.create("key", b"second")
    assert store.read("key") == b"first"


def test_creating_the_very_same_bytes_again_is_our_own_lost_answer(store: Store) -> None:
    assert store.create("key", b"with a nonce")
    assert store.create("key", b"with a nonce")


def test_of_many_creators_exactly_one_wins(store: Store) -> None:
    num_creators = 8
    barrier = Barrier(num_creators)

    def create(number: int) -> bool:
        barrier.wait()
        return store.create("deep/key", b"%d" % number)

    with ThreadPoolExecutor(num_creators) as pool:
        has_won = list(pool.map(create, range(num_creators)))
    assert sum(has_won) == 1
    assert store.read("deep/key") == b"%d" % has_won.index(True)


def test_deleted_object_is_gone_and_may_be_created_anew(store: Store) -> None:
    store.create("key", b"first")
    store.delete("key")
    assert list(store.list("")) == []
    assert store.create("key", b"second")


def test_deleting_what_is_not_there_is_harmless(store: Store) -> None:
    store.delete("not/there")


def test_etag_changes_with_the_content_and_with_nothing_else(store: Store) -> None:
    store.write("key", b"one")
    first = store.stat("key")
    store.read("key")
    store.write("other", b"xxx")
    assert store.stat("key") == first
    store.write("key", b"two")
    assert store.stat("key").etag != first.etag


def test_stream_is_of_the_very_object_that_was_asked_for(store: Store) -> None:
    store.write("key", b"one")
    etag = store.stat("key").etag
    assert b"".join(store.stream("key", etag=etag)) == b"one"
    store.write("key", b"a longer one")
    with pytest.raises(ObjectChangedError, match="key has changed"):
        list(store.stream("key", etag=etag))


def test_object_is_read_up_to_the_limit_and_not_beyond_it(store: Store) -> None:
    store.write("key", bytes(1000))
    assert len(store.read("key", max_bytes=1000)) == 1000
    with pytest.raises(ObjectTooLargeError, match="more than 999"):
        store.read("key", max_bytes=999)


@pytest.mark.parametrize("prefix", ["", "b", "b/", "b/x", "b/x/", "c", "not/there"])
def test_list_yields_the_keys_of_a_prefix_in_order(prefix: str, store: Store) -> None:
    # As S3 orders them: by their bytes, a slash being one of them.
    keys = ["b/x/d", "b-c/x", "a", "b!", "b0", "\U0001f600", "\uffff", "\u00fc", "b.x", "b/y"]
    for key in keys:
        store.create(key, b"")
    expected = sorted(key for key in keys if key.startswith(prefix))
    assert list(store.list(prefix)) == expected


def test_object_is_read_with_its_etag_and_not_again_while_that_is_the_same(store: Store) -> None:
    store.write("key", b"first")
    first = store.read_if_changed("key", None, max_bytes=5)
    assert first is not None
    data, etag = first
    assert (data, etag) == (b"first", store.stat("key").etag)
    assert store.read_if_changed("key", etag) is None
    store.write("key", b"second")
    second = store.read_if_changed("key", etag)
    assert second == (b"second", store.stat("key").etag)
    with pytest.raises(ObjectTooLargeError):
        store.read_if_changed("key", etag, max_bytes=5)
    store.delete("key")
    with pytest.raises(ObjectMissingError):
        store.read_if_changed("key", etag)


def test_listing_a_store_that_nobody_wrote_to_yields_nothing(store: Store) -> None:
    assert list(store.list("")) == []
    assert list(store.list("any/")) == []


def test_stores_with_names_that_begin_alike_do_not_see_each_other(
    root: str, opener: StoreOpener
) -> None:
    one, two = opener.open(f"{root}/job"), opener.open(f"{root}/job2")
    one.write("key", b"one")
    two.write("key", b"two")
    assert (one.read("key"), two.read("key")) == (b"one", b"two")
    assert list(one.list("")) == ["key"]


def test_roots_uri_and_a_key_make_the_objects_uri(root: str, opener: StoreOpener) -> None:
    store = opener.open(f"{root}/job/")
    assert store.uri == f"{root}/job"
    store.write("a/key", b"x")
    there, key = opener.locate(f"{store.uri}/a/key")
    assert there.read(key) == b"x"


def test_threads_may_share_a_store(store: Store) -> None:
    def use(number: int) -> bool:
        data = uuid4().bytes * 1000
        store.write(f"{number}", data)
        return store.read(f"{number}") == data and store.stat(f"{number}").num_bytes == 16000

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(24)))


@pytest.mark.parametrize("start", [0, 1, 5, 6, 100])
def test_stream_begins_where_it_is_told_to(store: Store, start: int) -> None:
    store.write("key", b"abcdef")
    assert b"".join(store.stream("key", start=start)) == b"abcdef"[start:]


def test_listing_says_of_objects_what_stat_says(store: Store) -> None:
    for key in ("in/b", "in/a", "other"):
        store.write(key, key.encode())
    assert list(store.list_objects("in/")) == [store.stat("in/a"), store.stat("in/b")]
