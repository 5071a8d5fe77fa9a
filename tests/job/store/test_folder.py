"""What is a folder's own: paths, half-written files, and memory."""

import errno
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from vlmflow.job.errors import StoreError
from vlmflow.job.store import ObjectMissingError
from vlmflow.job.store.base import ObjectForbiddenError
from vlmflow.job.store.folder import FolderStore

VERBS: dict[str, Callable[[FolderStore, str], object]] = {
    "stat": lambda store, key: store.stat(key),
    "read": lambda store, key: store.read(key),
    "stream": lambda store, key: list(store.stream(key)),
    "create": lambda store, key: store.create(key, b"x"),
    "write": lambda store, key: store.write(key, b"x"),
    "write_file": lambda store, key: store.write_file(key, Path(__file__)),
    "delete": lambda store, key: store.delete(key),
}


@pytest.fixture
def folder(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "root")


def names_below(store: FolderStore) -> list[str]:
    return sorted(path.name for path in store.root.rglob("*") if path.is_file())


@pytest.mark.parametrize("verb", ["stat", "read", "stream"])
def test_folder_is_no_object(verb: str, folder: FolderStore) -> None:
    folder.write("a/b", b"")
    with pytest.raises((ObjectForbiddenError, ObjectMissingError), match="root/a "):
        VERBS[verb](folder, "a")


@pytest.mark.parametrize("verb", ["create", "write", "write_file", "delete"])
def test_folder_in_the_way_of_a_file_is_an_error_with_a_name(
    verb: str, folder: FolderStore
) -> None:
    folder.write("a/b", b"")
    with pytest.raises((StoreError, ObjectForbiddenError), match="root/a"):
        VERBS[verb](folder, "a")
    assert names_below(folder) == ["b"]


@pytest.mark.parametrize("verb", ["create", "write", "write_file"])
def test_file_in_the_way_of_a_folder_is_an_error_with_a_name(
    verb: str, folder: FolderStore
) -> None:
    folder.write("a", b"")
    with pytest.raises(ObjectForbiddenError, match="cannot write .*root/a/b"):
        VERBS[verb](folder, "a/b")


@pytest.mark.parametrize("verb", ["create", "write", "write_file"])
def test_writing_leaves_nothing_but_the_object(verb: str, folder: FolderStore) -> None:
    folder.write("key", b"there")
    VERBS[verb](folder, "key")
    VERBS[verb](folder, "new")
    assert names_below(folder) == ["key", "new"]


def test_file_that_a_killed_writer_left_half_written_is_no_object(
    folder: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write("there", b"")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt  # as near to SIGKILL as a process can see

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", killed)
        folder.create("key", b"half")
    assert len(names_below(folder)) == 2
    assert list(folder.list("")) == ["there"]
    assert folder.create("key", b"whole")


@pytest.mark.parametrize("verb", ["create", "write", "write_file"])
def test_write_on_a_full_disk_fails_and_leaves_nothing(
    verb: str, folder: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="No space left"):
        patch.setattr(os, "fsync", full)
        VERBS[verb](folder, "key")
    assert names_below(folder) == []


@pytest.mark.parametrize("verb", VERBS)
def test_path_that_the_system_refuses_is_a_store_error(verb: str, folder: FolderStore) -> None:
    folder.write("there", b"")
    with pytest.raises(StoreError, match="File name too long"):
        VERBS[verb](folder, "x" * 300)
    assert names_below(folder) == ["there"]


def test_file_of_any_size_is_copied_through_little_memory(
    folder: FolderStore, tmp_path: Path
) -> None:
    size = 32 << 20
    with (tmp_path / "source").open("wb") as file:
        file.truncate(size)
    tracemalloc.start()
    try:
        folder.write_file("key", tmp_path / "source")
        assert sum(map(len, folder.stream("key"))) == size
        assert tracemalloc.get_traced_memory()[1] < size / 4
    finally:
        tracemalloc.stop()
