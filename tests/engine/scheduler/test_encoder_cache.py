"""Room is counted in rows; what is used stays, what is unused goes, oldest first."""

from vlmflow_engine.scheduler.encoder_cache import EncoderCache


def test_unused_entries_are_evicted_least_recently_used_first():
    cache = EncoderCache(10)
    for name in (b"a", b"b"):
        cache.add(name, 4)
        cache.use(name, 1)
    cache.release(b"b", 1)
    cache.release(b"a", 1)
    assert cache.add(b"c", 5) == [b"b"]
    assert b"a" in cache and b"b" not in cache
    assert cache.num_rows == 9


def test_used_entries_are_never_evicted():
    cache = EncoderCache(10)
    cache.add(b"a", 6)
    cache.use(b"a", 1)
    assert not cache.has_room(5)
    assert cache.has_room(4)


def test_an_entry_is_kept_until_its_last_user_released_it():
    cache = EncoderCache(10)
    cache.add(b"a", 6)
    cache.use(b"a", 1)
    cache.use(b"a", 2)
    cache.release(b"a", 1)
    assert not cache.has_room(5)
    cache.release(b"a", 2)
    assert cache.has_room(10)
    assert b"a" in cache


def test_releasing_what_is_not_used_changes_nothing():
    cache = EncoderCache(10)
    cache.add(b"a", 6)
    cache.release(b"a", 1)
    cache.release(b"unknown", 1)
    assert cache.has_room(10)
    assert cache.add(b"b", 5) == [b"a"]


def test_using_again_makes_an_entry_the_most_recent():
    cache = EncoderCache(8)
    cache.add(b"a", 4)
    cache.add(b"b", 4)
    cache.use(b"a", 1)
    cache.release(b"a", 1)
    assert cache.add(b"c", 4) == [b"b"]


def test_clearing_names_every_entry():
    cache = EncoderCache(8)
    cache.add(b"a", 4)
    cache.use(b"a", 1)
    cache.add(b"b", 4)
    assert sorted(cache.clear()) == [b"a", b"b"]
    assert cache.num_rows == 0 and cache.has_room(8)
