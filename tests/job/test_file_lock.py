"""A lock has one holder or many, and is given back in every way a holder ends."""

from pathlib import Path

import pytest

from vlmflow.job.file_lock import FileLock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_a_lock_has_one_holder_until_it_is_released(path: Path) -> None:
    lock = FileLock(path)
    with pytest.raises(BlockingIOError):
        FileLock(path)
    lock.release()
    FileLock(path)


def test_a_forgotten_lock_is_given_back(path: Path) -> None:
    lock = FileLock(path)
    del lock
    FileLock(path)


def test_a_shared_lock_has_many_holders_and_keeps_others_out(path: Path) -> None:
    locks = [FileLock(path, is_shared=True) for _ in range(3)]
    with pytest.raises(BlockingIOError):
        FileLock(path)
    for lock in locks:
        lock.release()
    FileLock(path)


def test_a_lock_without_a_folder_is_an_os_error(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileLock(path / "x")
