"""Models of S3: what is fetched, what is checked, and who may share it."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from tests.job.faulty_s3 import Exchange, FaultyS3, refuse
from vlmflow.job.errors import InterruptedJobError, SpecError, StoreError
from vlmflow.job.file_lock import FileLock
from vlmflow.job.model_cache import CachedModel, ModelCache
from vlmflow.job.store import Store, StoreOpener

MODEL = {
    "config.json": b'{"model_type": "llava"}',
    "model-1.safetensors": bytes(range(256)) * 4000,
    "model-2.safetensors": b"more weights" * 1000,
    "tokenizer.json": b"{}",
    "merges.txt": b"",
}
NOT_READ = {
    "modeling_evil.py": b"import os",
    "pytorch_model.bin": b"pickle",
    "training_args.bin": b"pickle",
    "consolidated.safetensors": b"the same again",
    ".hidden.json": b"{}",
    "README.md": b"# model",
    "onnx/config.json": b"{}",
}


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


@pytest.fixture
def model(faulty_store: Store) -> Store:
    """A store with a model in it, on a server on which things go wrong when a test wants them."""
    for name, data in (MODEL | NOT_READ).items():
        faulty_store.write(name, data)
    return faulty_store


Fetch = Callable[[], CachedModel]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def fetch(model: Store, tmp_path: Path, said: list[str]) -> Fetch:
    cache = ModelCache(tmp_path / "models", say=said.append, is_stopped=lambda: False)
    return lambda: cache.fetch(model, model.uri)


@pytest.fixture
def gets(faulty_s3: FaultyS3) -> list[str]:
    """The names whose content was asked for from now on."""
    names: list[str] = []

    def note(exchange: Exchange) -> None:
        if "list-type" not in exchange.path:
            names.append(exchange.path.split("?")[0].rpartition("/")[2])
        exchange.answer(*exchange.pass_on())

    faulty_s3.always("GET", note)
    return names


def content(model: CachedModel) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in model.folder.iterdir()}


def test_a_model_is_fetched_without_code_and_pickles(fetch: Fetch) -> None:
    assert content(fetch()) == MODEL


def test_a_second_start_asks_for_no_content(fetch: Fetch, gets: list[str]) -> None:
    first = fetch()
    assert sorted(set(gets)) == sorted(MODEL)
    gets.clear()
    second = fetch()
    assert gets == [] and second.folder == first.folder


def test_digests_are_recorded_for_whoever_asks_what_model_it_is(fetch: Fetch) -> None:
    folder = fetch().folder
    record = json.loads(folder.with_suffix(".json").read_text())
    assert {name: known["sha256"] for name, known in record.items()} == {
        name: sha256(data).hexdigest() for name, data in MODEL.items()
    }
    assert {known["checked_by"] for known in record.values()} == {"crc32"}  # boto3's own choice
    digests = json.loads((Path(os.environ["XDG_CACHE_HOME"]) / "vlmflow/digests.json").read_text())
    assert sha256(MODEL["model-1.safetensors"]).hexdigest() in digests.values()


def test_what_has_changed_is_fetched_and_the_rest_is_linked(
    fetch: Fetch, model: Store, gets: list[str]
) -> None:
    old = fetch()
    gets.clear()
    model.write("model-2.safetensors", b"others")
    model.delete("merges.txt")
    new = fetch()
    assert gets == ["model-2.safetensors"]
    expected = MODEL | {"model-2.safetensors": b"others"}
    del expected["merges.txt"]
    assert content(new) == expected
    assert content(old) == MODEL  # whoever reads it goes on


def test_a_version_that_nobody_holds_is_removed(fetch: Fetch, model: Store) -> None:
    held = fetch()
    model.write("config.json", b"{}")
    second = fetch()
    place = second.folder.parent
    assert held.folder.exists() and second.folder.exists()
    del held
    model.write("config.json", b"[]")
    third = fetch()
    left = {path.name for path in place.iterdir() if path.is_dir()}
    assert left == {second.folder.name, third.folder.name}
    assert content(third)["model-1.safetensors"] == MODEL["model-1.safetensors"]


@pytest.mark.parametrize("harm", ["touched", "cut", "deleted"])
def test_a_file_that_is_not_as_it_was_fetched_is_fetched_again(
    harm: str, fetch: Fetch, gets: list[str]
) -> None:
    path = fetch().folder / "model-1.safetensors"
    gets.clear()
    if harm == "touched":
        path.write_bytes(b"x" * len(MODEL[path.name]))
        os.utime(path, (1, 1))
    elif harm == "cut":
        os.truncate(path, 5)
    else:
        path.unlink()
    assert content(fetch()) == MODEL
    assert gets == [path.name]


def test_an_interrupted_fetch_goes_on_where_it_was(
    fetch: Fetch, model: Store, tmp_path: Path, faulty_s3: FaultyS3, said: list[str]
) -> None:
    model.write("model-1.safetensors", b"w" * (8 << 20))
    # Told to stop once three chunks of the large file are written.
    seen: list[Path] = []

    def is_stopped() -> bool:
        seen[:] = [p for p in tmp_path.rglob("model-1.safetensors.part") if p.stat().st_size > 3e6]
        return bool(seen)

    cache = ModelCache(tmp_path / "models", say=said.append, is_stopped=is_stopped)
    with pytest.raises(InterruptedJobError):
        cache.fetch(model, model.uri)
    [part] = seen
    size = part.stat().st_size
    assert 3e6 < size < 8 << 20
    ranges: list[str] = []

    def note(exchange: Exchange) -> None:
        if "model-1" in exchange.path:
            ranges.append(exchange.headers["Range"])
        exchange.answer(*exchange.pass_on())

    faulty_s3.always("GET", note)
    assert content(fetch())["model-1.safetensors"] == b"w" * (8 << 20)
    assert ranges == [f"bytes={size}-"]


def corrupt(exchange: Exchange) -> None:
    """Answer with as many bytes, and others."""
    status, headers, body = exchange.pass_on()
    if "model-1" in exchange.path and status < 300:
        body = body[:-1] + bytes([body[-1] ^ 1])
    exchange.answer(status, headers, body)


def test_what_is_not_what_the_store_holds_is_fetched_again_once(
    fetch: Fetch, faulty_s3: FaultyS3
) -> None:
    is_first = threading.Event()

    def corrupt_once(exchange: Exchange) -> None:
        if "model-1" in exchange.path and not is_first.is_set():
            is_first.set()
            return corrupt(exchange)
        exchange.answer(*exchange.pass_on())

    faulty_s3.always("GET", corrupt_once)
    assert content(fetch()) == MODEL and is_first.is_set()


def test_what_is_never_what_the_store_holds_is_refused(
    fetch: Fetch, faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    faulty_s3.always("GET", corrupt)
    with pytest.raises(StoreError, match=r"model-1.safetensors: what is fetched is twice not what"):
        fetch()
    assert not list(tmp_path.rglob("model-1.safetensors*"))


def test_a_leftover_longer_than_the_object_is_begun_anew(fetch: Fetch) -> None:
    folder = fetch().folder
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json.part").write_bytes(b"x" * 100)
    assert content(fetch()) == MODEL


def test_an_object_that_changes_meanwhile_is_told(fetch: Fetch, faulty_s3: FaultyS3) -> None:
    faulty_s3.always("HEAD", refuse(412, "PreconditionFailed"))
    with pytest.raises(StoreError, match="is being changed; run the same command when it is whole"):
        fetch()


def test_two_processes_fetch_once(fetch: Fetch, gets: list[str], said: list[str]) -> None:
    models: list[CachedModel] = []
    threads = [threading.Thread(target=lambda: models.append(fetch())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(gets) == sorted(MODEL)
    assert len({model.folder for model in models}) == 1 and len(models) == 3


def test_the_lock_of_a_killed_process_is_free(
    fetch: Fetch, tmp_path: Path, model: Store, said: list[str]
) -> None:
    place = fetch().folder.parent
    script = (
        "import sys, time; from pathlib import Path; from vlmflow.job.file_lock import FileLock;"
        "lock = FileLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(place / "lock")], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        waiting = threading.Thread(target=fetch)
        waiting.start()
        deadline = time.monotonic() + 10
        while not any("another process is fetching it" in line for line in said):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        holder.kill()
    waiting.join(10)
    assert not waiting.is_alive()


def test_who_waits_for_another_can_be_told_to_stop(model: Store, tmp_path: Path) -> None:
    cache = ModelCache(tmp_path / "models", say=lambda line: None, is_stopped=lambda: True)
    place = tmp_path / "models" / sha256(model.uri.encode()).hexdigest()[:16]
    place.mkdir(parents=True)
    lock = FileLock(place / "lock")
    with pytest.raises(InterruptedJobError):
        cache.fetch(model, model.uri)
    lock.release()


def test_too_little_room_is_told_before_anything_is_fetched(
    fetch: Fetch, gets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    needed = sum(map(len, MODEL.values()))
    with pytest.raises(
        SpecError, match=f"has {needed:,} bytes that are not here, .* room for 1,000"
    ):
        fetch()
    assert gets == []


def test_a_disk_that_fills_up_is_told(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SpecError, match="No space left on device; what is fetched stays"):
        fetch()


@pytest.mark.parametrize("name", ["no/such/prefix", ""])
def test_where_there_is_no_model_is_told(
    name: str, bucket: str, opener: StoreOpener, tmp_path: Path
) -> None:
    cache = ModelCache(tmp_path, say=lambda line: None, is_stopped=lambda: False)
    store = opener.open(f"s3://{bucket}/{name}")
    with pytest.raises(SpecError, match="is not a checkpoint: there is no config.json in it"):
        cache.fetch(store, store.uri)
    store = opener.open("s3://no-such-bucket-here/x")
    with pytest.raises(SpecError, match="cannot be read: bucket 'no-such-bucket-here' does not"):
        cache.fetch(store, store.uri)


def test_a_cache_that_cannot_be_made_is_told(model: Store, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = ModelCache(tmp_path / "file" / "x", say=lambda line: None, is_stopped=lambda: False)
    with pytest.raises(SpecError, match="Not a directory; what is fetched stays, name another --"):
        cache.fetch(model, model.uri)
