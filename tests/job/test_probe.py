"""The probe tells a store whose create is atomic from one that only says so."""

import pytest

from tests.job.faulty_s3 import FaultyS3, forget_header, refuse
from vlmflow.job.errors import VlmflowError
from vlmflow.job.probe import create_is_atomic
from vlmflow.job.store import Store, StoreOpener


def test_store_with_an_atomic_create_passes_and_is_left_as_it_was(store: Store) -> None:
    store.write("key", b"x")
    assert create_is_atomic(store)
    assert list(store.list("")) == ["key"]


def test_store_that_lets_everybody_win_is_found_out(
    faulty_store: Store, faulty_s3: FaultyS3
) -> None:
    faulty_s3.always("PUT", forget_header("If-None-Match"))
    assert not create_is_atomic(faulty_store)


def test_store_that_does_not_know_conditional_writes_is_found_out(
    faulty_store: Store, faulty_s3: FaultyS3
) -> None:
    faulty_s3.always("PUT", refuse(501, "NotImplemented"))
    assert not create_is_atomic(faulty_store)


def test_store_that_refuses_conditional_writes_as_a_wrong_request_is_found_out(
    faulty_store: Store, faulty_s3: FaultyS3
) -> None:
    faulty_s3.always("PUT", refuse(400, "InvalidArgument"))
    assert not create_is_atomic(faulty_store)


def test_probe_of_a_store_that_may_not_be_written_to_says_so(
    faulty_store: Store, faulty_s3: FaultyS3
) -> None:
    faulty_s3.always("PUT", refuse(403, "AccessDenied"))
    with pytest.raises(VlmflowError, match="access denied"):
        create_is_atomic(faulty_store)


def test_probe_leaves_nothing_behind_whatever_it_finds(
    faulty_store: Store, faulty_s3: FaultyS3, opener: StoreOpener
) -> None:
    faulty_s3.always("PUT", forget_header("If-None-Match"))
    create_is_atomic(faulty_store)
    faulty_s3.next("PUT", refuse(400, "InvalidArgument"))
    create_is_atomic(faulty_store)
    assert list(opener.open(faulty_store.uri).list("")) == []
