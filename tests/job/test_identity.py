"""What an answer depends on makes another job; nothing else does."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmflow.job.errors import SpecError
from vlmflow.job.identity import (
    describe_difference,
    identity_digest,
    identity_parts,
    model_digest,
)
from vlmflow.job.spec import JobSpec

LEAST: dict[str, Any] = {"manifest": "m.jsonl", "model": "/model", "output": "/out"}
FILES = {
    "config.json": "{}",
    "model-00001-of-00002.safetensors": "weights",
    "model-00002-of-00002.safetensors": "more weights",
    "tokenizer.json": "tokens",
    "tokenizer.model": "pieces",
    "chat_template.jinja": "template",
    "preprocessor_config.json": "pixels",
    "adapter/adapter_model.safetensors": "adapter",
    "README.md": "what it is",
    "LICENSE": "what may be done",
}
DECIDING = [name for name in FILES if name not in ("config.json", "README.md", "LICENSE")]


@pytest.fixture(autouse=True)
def cache_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where digests are kept, empty at first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vlmflow" / "digests.json"


def make_model(folder: Path) -> Path:
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


def change_unseen(path: Path) -> None:
    """Change a file, and neither its size nor its time."""
    info = path.stat()
    path.write_text(path.read_text()[::-1].swapcase())
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def parts_of(
    manifest: str = "1" * 64, model: str = "2" * 64, dtype: str = "float32", **values: Any
) -> dict[str, Any]:
    spec = JobSpec.parse(LEAST | values)
    return identity_parts(
        spec, manifest_digest=manifest, dialect="native", model_digest=model, dtype=dtype
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"manifest": "3" * 64}, 'manifest was "11111111\u2026 and is "33333333\u2026'),
        ({"model": "3" * 64}, 'model was "22222222\u2026 and is "33333333\u2026'),
        ({"dtype": "bfloat16"}, 'dtype was "float32" and is "bfloat16"'),
        ({"limit": 5}, "limit was null and is 5"),
        ({"seed": 1}, "seed was 0 and is 1"),
        (
            {"generation": {"max_new_tokens": 5}},
            "generation.max_new_tokens was 512 and is 5",
        ),
        ({"generation": {"do_sample": True}}, "generation.do_sample was false and is true"),
        ({"generation": {"temperature": 0.5}}, "generation.temperature was 0.8 and is 0.5"),
        ({"generation": {"stop_token_ids": [7]}}, "generation.stop_token_ids was null and is [7]"),
        ({"engine": {"max_image_pixels": 5}}, "engine.max_image_pixels was 89478485 and is 5"),
        ({"engine": {"session_len": 5}}, "engine.session_len was null and is 5"),
        (
            {"seed": 1, "limit": 5},
            "limit was null and is 5, seed was 0 and is 1",
        ),
    ],
    ids=str,
)
def test_what_an_answer_depends_on_is_another_job_and_is_named(
    change: dict[str, Any], sentence: str
) -> None:
    theirs, ours = parts_of(), parts_of(**change)
    assert identity_digest(ours) != identity_digest(theirs)
    assert describe_difference(ours, theirs) == sentence


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"model": "2" * 64, "output": "/elsewhere", "endpoint_url": "http://127.0.0.1:9000"},
        {"engine": {"max_batch_size": 3, "block_size": 8, "num_gpu_blocks": 9}},
        {"engine": {"max_prefill_token_num": 7, "enable_prefix_caching": False}},
        {"engine": {"device_type": "cpu", "cache_max_entry_count": 0.1}},
        {"engine": {"num_preprocess_workers": 4, "encoder_cache_rows": 3}},
        {"limits": {"max_failure_rate": 1, "num_fetchers": 3, "commit_seconds": 1}},
        {"media": {"allowed_s3": ["s3://b"], "allow_http": True, "cache_bytes": 0}},
        {"media": {"cache": "/cache"}, "deduplicate": False},
        {"limits": {"grace_seconds": 1, "commit_records": 1, "engine_silence_seconds": 1}},
        {"tracking": {"enabled": False, "uri": "http://x", "experiment": "y"}},
        {"price_per_hour": 2.5},
    ],
    ids=str,
)
def test_how_a_job_is_carried_out_makes_no_other_job(change: dict[str, Any]) -> None:
    assert identity_digest(parts_of(**change)) == identity_digest(parts_of())
    assert describe_difference(parts_of(**change), parts_of()) == ""


def test_a_default_is_no_part_so_that_a_version_with_new_options_goes_on() -> None:
    assert set(parts_of()) == {
        *("manifest", "dialect", "prompt", "model_names", "duplicates", "limit"),
        *("model", "seed", "dtype", "result_schema_version"),
    }


@pytest.mark.parametrize(
    ("group", "option", "value"),
    [
        ("generation", "stop_words", ["."]),
        ("generation", "min_new_tokens", 3),
        ("generation", "response_format", {"type": "json_object"}),
        ("engine", "quant", "int8"),
        ("engine", "quant_policy", 8),
        ("engine", "hf_overrides", {"rope_theta": 1}),
    ],
)
def test_an_option_that_is_set_is_a_part(group: str, option: str, value: Any) -> None:
    assert parts_of(**{group: {option: value}})[f"{group}.{option}"] == value


def test_order_of_the_parts_does_not_matter() -> None:
    assert identity_digest(dict(reversed(parts_of().items()))) == identity_digest(parts_of())


def test_part_that_only_one_of_two_versions_knows_is_named() -> None:
    assert describe_difference({"a": 1, "new": 2}, {"a": 1}) == "new was null and is 2"


@pytest.mark.parametrize("name", DECIDING)
@pytest.mark.parametrize("change", ["changed", "deleted", "renamed"])
def test_file_that_decides_an_answer_is_in_the_models_digest(
    change: str, name: str, model: Path
) -> None:
    before = model_digest(str(model))
    path = model / name
    if change == "changed":
        path.write_text(path.read_text() + " ")
    elif change == "deleted":
        path.unlink()
    else:
        path.rename(path.with_stem(f"{path.stem}-2"))
    assert model_digest(str(model)) != before


def test_changed_config_changes_the_digest(model: Path) -> None:
    before = model_digest(str(model))
    (model / "config.json").write_text('{"rope_theta": 2}')
    assert model_digest(str(model)) != before


def test_bytes_that_move_from_one_file_to_the_next_change_the_digest(model: Path) -> None:
    before = model_digest(str(model))
    (model / "model-00001-of-00002.safetensors").write_text("weightsmore ")
    (model / "model-00002-of-00002.safetensors").write_text("weights")
    assert model_digest(str(model)) != before


@pytest.mark.parametrize(
    "touch",
    [
        lambda model: (model / "README.md").write_text("better said"),
        lambda model: (model / "LICENSE").unlink(),
        lambda model: (model / "picture.png").write_bytes(b"x"),
        lambda model: (model / ".hidden.json").write_text("{}"),
        lambda model: os.utime(model / "config.json", (1, 1)),
    ],
    ids=["readme", "licence", "picture", "hidden", "time"],
)
def test_file_that_decides_nothing_is_not_in_the_models_digest(
    touch: Callable[[Path], object], model: Path
) -> None:
    before = model_digest(str(model))
    touch(model)
    assert model_digest(str(model)) == before


def test_copy_in_another_folder_has_the_same_digest(model: Path, tmp_path: Path) -> None:
    assert model_digest(str(make_model(tmp_path / "copy"))) == model_digest(str(model))
    assert model_digest(f"{model}/") == model_digest(str(model))


def test_digests_of_files_are_kept_and_a_touched_file_is_read_again(model: Path) -> None:
    path = model / "tokenizer.json"
    before = model_digest(str(model))
    change_unseen(path)
    assert model_digest(str(model)) == before
    os.utime(path)
    assert model_digest(str(model)) != before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"null"])
def test_cache_that_cannot_be_read_is_made_anew(
    content: bytes, model: Path, cache_file: Path
) -> None:
    before = model_digest(str(model))
    cache_file.write_bytes(content)
    assert model_digest(str(model)) == before
    assert str(model / "config.json") in cache_file.read_text()


def test_home_that_cannot_be_written_to_costs_only_time(model: Path, cache_file: Path) -> None:
    cache_file.parent.parent.write_text("a file where the folder should be")
    before = model_digest(str(model))
    change_unseen(model / "tokenizer.json")
    assert model_digest(str(model)) != before


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, Path.touch])
def test_what_is_no_checkpoint_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "model")
    with pytest.raises(SpecError, match="no config.json"):
        model_digest(str(tmp_path / "model"))


def test_an_adapter_is_known_by_what_is_in_it_and_not_by_its_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"weights")
    parts = [parts_of(engine={"adapters": {"a": str(tmp_path / name)}}) for name in ("one", "two")]
    assert parts[0] == parts[1] != parts_of()
    (tmp_path / "two" / "adapter_model.safetensors").write_bytes(b"others")
    changed = parts_of(engine={"adapters": {"a": str(tmp_path / "two")}})
    assert "engine.adapters was" in describe_difference(changed, parts[0])
    with pytest.raises(SpecError, match="there is no adapter_config.json"):
        parts_of(engine={"adapters": {"a": str(tmp_path)}})


def test_a_vision_tower_in_a_folder_of_its_own_is_in_the_models_digest(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (model / "config.json").write_text('{"mm_vision_tower": "openai/clip"}')
    without = model_digest(str(model))
    elsewhere = make_model(tmp_path / "openai/clip")
    beside = model_digest(str(model))
    assert beside != without
    (elsewhere / "model.safetensors").write_bytes(b"another tower")
    assert model_digest(str(model)) != beside
    make_model(model / "openai/clip")  # the one that counts then
    (elsewhere / "model.safetensors").unlink()
    inside = model_digest(str(model))
    (elsewhere / "config.json").unlink()
    assert model_digest(str(model)) == inside != without
