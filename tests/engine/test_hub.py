"""Names of models: folders as they are, the hub's downloaded, and one sentence for what fails.

The hub's library reads its environment once, so each environment is a process of its own.
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.engine.hub_server import Hub, serve_hub
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig
from vlmflow_engine.errors import ModelError
from vlmflow_engine.hub import commit_of, files_to_read, resolve_model

MODEL = {
    "config.json": b'{"revision": "main"}',
    "model.safetensors": b"weights",
    "model.safetensors.index.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "merges.txt": b"a b",
    "tokenizer.model": b"pieces",
}
NOT_READ = {
    "modeling_evil.py": b"import os",
    "pytorch_model.bin": b"pickle",
    "training_args.bin": b"pickle",
    "consolidated.00.pth": b"pickle",
    "rng_state.pt": b"pickle",
    "optimizer.pkl": b"pickle",
    "consolidated.safetensors": b"the same again",
    "adapter_model.safetensors": b"of another model",
    ".hidden.json": b"{}",
    "README.md": b"# model",
    "onnx/config.json": b"{}",
}
OLD = {  # nothing but pickles
    "config.json": b"old",
    "pytorch_model-00001-of-00001.bin": b"pickle",
    "pytorch_model.bin.index.json": b"{}",
}
TOKEN = "hf_notforanyseyes"

FAILURES: dict[tuple[str, str | None, str | None], str] = {
    ("owner/absent", None, None): (
        "127.0.0.1 has no such repository, or shows it to its members only (HF_TOKEN)"
    ),
    ("owner/gated", None, None): (
        "on 127.0.0.1 its files are given only to who has asked for them; accept its terms there, "
        "and set HF_TOKEN"
    ),
    ("owner/tiny", None, "v9"): "127.0.0.1 has no revision 'v9' of it",
    ("owner/na--me", None, None): "not a name that the model hub allows",
    ("owner/closed", None, None): "127.0.0.1 answers with HTTP status 410",
    ("owner/tiny", "file", None): "the download cannot be stored: Not a directory",
}

# Each line: arguments of resolve_model in, a folder or an error out.
SCRIPT = """
import json, sys, traceback
from vlmflow_engine.errors import ModelError
from vlmflow_engine.hub import resolve_model
assert "torch" not in sys.modules
for line in sys.stdin:
    try:
        print(json.dumps({"folder": str(resolve_model(*json.loads(line)))}))
    except ModelError as error:
        print(json.dumps({"error": str(error), "traceback": traceback.format_exc()}))
"""

Call = tuple[str, str | None, str | None]
Answer = dict[str, str]


def resolve(home: Path, url: str, calls: Iterable[Call], **environment: str) -> list[Answer]:
    """Resolve names in a new process."""
    variables = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_TOKEN": TOKEN}
    unset = ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_OFFLINE")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input="".join(json.dumps(call) + "\n" for call in calls),
        env=inherited | variables | {"NO_PROXY": "127.0.0.1"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The hub's cache, and `store`, a folder of our own."""
    home = tmp_path_factory.mktemp("home")
    (home / "file").touch()
    return home


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    old = MODEL | {"config.json": b'{"revision": "old"}'}
    names = ("owner/gated", "owner/closed")
    hub = Hub(
        {
            "owner/tiny": {"main": MODEL | NOT_READ, "v1": old},
            "owner/old": {"main": OLD | {"training_args.bin": b"pickle", "run.py": b"code"}},
        }
        | {n: {"main": MODEL} for n in names},
        gated={"owner/gated"},
        closed={"owner/closed"},
    )
    with serve_hub(hub) as hub:
        yield hub


@pytest.fixture(scope="module")
def answers(hub, home) -> dict[Call, Answer]:
    """All that is asked of the hub, in one process."""
    store, commit = str(home / "store"), hub.commit("owner/tiny", "v1")
    calls: list[Call] = [
        ("owner/tiny", None, None),
        ("owner/tiny", store, None),
        ("owner/tiny", store, "v1"),
        ("owner/tiny", store, commit),
        ("owner/old", store, None),
        *((call[0], call[1] and str(home / call[1]), call[2]) for call in FAILURES),
    ]
    return dict(zip(calls, resolve(home, hub.url, calls), strict=True))


def test_a_local_folder_is_used_as_it_is(tmp_path, monkeypatch):
    assert resolve_model(str(tmp_path), None, "v7") == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    assert resolve_model("~/models", None, None) == tmp_path / "models"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "tiny").mkdir(parents=True)
    assert resolve_model("owner/tiny", None, None) == Path("owner/tiny")


@pytest.mark.parametrize(
    "path",
    ["/no/where", "./owner/name", "../name", "~/name", "~nobody-here/name", "nowhere", "a/b/c"]
    + ["owner/", "", "a b/c", "a" * 5000, "a\0/b", "owner/name\n"],
    ids=lambda path: repr(path)[:20],
)
def test_what_can_only_be_a_folder_is_not_sought_on_the_hub(path):
    with pytest.raises(ModelError, match=f"{re.escape(repr(path))}: no such folder, and not a n"):
        resolve_model(path, None, None)


def test_a_file_is_no_model(tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ModelError, match="is a file; a model is a folder, or owner/name"):
        resolve_model(str(path), None, None)


def test_a_model_of_the_hub_is_downloaded_without_code_and_pickles(answers, hub, home):
    folder = Path(answers["owner/tiny", None, None]["folder"])
    assert folder.is_relative_to(home) and not folder.is_relative_to(home / "store")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == MODEL
    assert set(hub.fetched) == set(MODEL) | set(OLD)


def test_pickles_of_weights_come_only_where_there_is_nothing_else(answers, home):
    folder = Path(answers["owner/old", str(home / "store"), None]["folder"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == OLD


def test_a_revision_is_a_snapshot_of_its_own_in_the_folder_named(answers, hub, home):
    store, commit = str(home / "store"), hub.commit("owner/tiny", "v1")
    folders = [
        Path(answers["owner/tiny", store, revision]["folder"]) for revision in (None, "v1", commit)
    ]
    assert all(folder.is_relative_to(store) for folder in folders)
    read = [json.loads((folder / "config.json").read_text())["revision"] for folder in folders]
    assert read == ["main", "old", "old"]
    assert folders[1] == folders[2]
    assert hub.fetched.count("config.json") == 4  # the old one's too


def test_offline_the_cache_is_used_and_nothing_else(answers, hub, home):
    online, asked = answers["owner/tiny", None, None], len(hub.fetched)
    calls = [("owner/tiny", None, None), ("owner/absent", None, None), ("owner/tiny", None, "v1")]
    cached, *others = resolve(home, hub.url, calls, HF_HUB_OFFLINE="1")
    assert cached == online
    for answer in others:
        assert "HF_HUB_OFFLINE is set and it is not wholly in the cache" in answer["error"]
    assert len(hub.fetched) == asked


def test_without_a_network_the_cache_is_used_too(answers, home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
        calls = [("owner/tiny", None, None), ("owner/absent", None, None)]
        cached, absent = resolve(home, nowhere, calls)
    assert cached == answers["owner/tiny", None, None]
    assert "127.0.0.1 cannot be reached" in absent["error"]


@pytest.mark.parametrize("failure", FAILURES, ids=str)
def test_every_failure_is_one_sentence_without_secrets(failure, answers, home):
    name, store, revision = failure
    answer = answers[name, store and str(home / store), revision]
    assert answer["error"] == f"model {name!r}: no such folder, and {FAILURES[failure]}"
    for secret in (TOKEN, "SECRET", "http://", "https://"):
        assert secret not in answer["traceback"]


@pytest.mark.parametrize(
    "revision", [None, "main", "v1.0", "0123abc", "0123456789" * 4 + "a", "A" * 40]
)
def test_a_revision_that_may_move_is_refused_if_it_must_be_pinned(revision):
    with pytest.raises(ModelError) as caught:
        resolve_model("owner/tiny", None, revision, require_pinned_revision=True)
    assert str(caught.value) == (
        "model 'owner/tiny': revision must be the full hash of a commit, 40 hexadecimal digits, as "
        f"require_pinned_revision asks; got {revision!r}"
    )


def test_a_pinned_revision_is_taken_and_a_folder_needs_none(tmp_path, monkeypatch):
    commit = "0123456789" * 4
    snapshot = tmp_path / "models--owner--tiny" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = resolve_model("owner/tiny", str(tmp_path), commit, require_pinned_revision=True)
    assert folder == snapshot and commit_of(folder) == commit
    assert resolve_model(str(tmp_path), None, None, require_pinned_revision=True) == tmp_path
    assert commit_of(tmp_path) is None


def test_of_a_list_of_files_those_of_a_model_are_chosen():
    assert files_to_read([*NOT_READ, *MODEL]) == list(MODEL)
    assert files_to_read([*OLD, "training_args.bin", "code.py", "sub/pytorch_model.bin"]) == list(
        OLD
    )


def test_a_pipeline_takes_a_model_of_the_hub(tiny_llava, tmp_path, monkeypatch):
    """From a cache that is already filled: this process may have read its environment."""
    commit = "0123456789" * 4
    store = tmp_path / "models--owner--tiny"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text(commit)
    (store / "snapshots").mkdir()
    (store / "snapshots" / commit).symlink_to(tiny_llava)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = PytorchEngineConfig(
        dtype="float32", device_type="cpu", download_dir=str(tmp_path), revision="main"
    )
    with Pipeline("owner/tiny", backend_config=config) as pipeline:
        response = pipeline("red", GenerationConfig(max_new_tokens=3))
    assert response.error_message is None and response.token_ids
