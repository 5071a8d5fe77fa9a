"""Whole jobs in this process, with the fake engine as child and a folder or S3 as store."""

import json
import time
from pathlib import Path

import pytest

from tests.job.jobs import committed_ordinals, read_lines, records, run_job
from tests.job.jobs import write_manifest as write
from vlmflow.job.errors import IdentityError, ManifestError, SpecError, TooManyFailuresError
from vlmflow.job.store.base import ObjectForbiddenError

pytestmark = pytest.mark.usefixtures("fake_engine")


def times_asked(log: Path) -> dict[int, int]:
    ordinals = [int(line) for line in log.read_text().split()]
    return {ordinal: ordinals.count(ordinal) for ordinal in ordinals}


def failures_by_id(output: str) -> dict[str | None, dict]:
    return {line["id"]: line["error"] for line in read_lines(output, "failures")}


def test_every_record_has_one_result_in_the_manifests_order(tmp_path):
    manifest = write(tmp_path / "m.jsonl", records(150))
    report = run_job(tmp_path, manifest, tmp_path / "out")
    output = f"{tmp_path}/out/m"
    results = read_lines(output, "results")
    assert [line["id"] for line in results] == [f"r{n}" for n in range(150)]
    assert read_lines(output, "failures") == []
    assert report["counts"] == {
        "records": 150,
        "succeeded": 150,
        "failed": 0,
        "skipped": 0,
        "deduplicated": 0,
    }
    assert report["tokens"] == {"prompt": 1500, "cached": 300, "output": 450}
    assert json.loads((tmp_path / "out/m/report.json").read_text()) == report
    assert (tmp_path / "out/m/_SUCCESS.json").is_file()


def test_a_job_between_buckets(tmp_path, bucket, s3_endpoint, s3_client):
    s3_client.put_object(Bucket=bucket, Key="in/a.png", Body=b"picture")
    lines = [
        {"id": "with", "prompt": "x", "images": [f"s3://{bucket}/in/a.png", "a.png"]},
        {"id": "missing", "prompt": "x", "images": ["b.png"]},
        *records(8),
    ]
    body = "\n".join(json.dumps(line) for line in lines)
    s3_client.put_object(Bucket=bucket, Key="in/m.jsonl", Body=body.encode())
    report = run_job(
        tmp_path,
        f"s3://{bucket}/in/m.jsonl",
        f"s3://{bucket}/out",
        endpoint_url=s3_endpoint,
        limits={"max_failure_rate": 0.5},
    )
    assert report["counts"]["succeeded"] == 9
    assert report["store"]["create_is_atomic"] is True
    output = f"s3://{bucket}/out/m"
    [first, *_] = read_lines(output, "results", s3_endpoint)
    assert [image["uri"] for image in first["images"]] == [f"s3://{bucket}/in/a.png", "a.png"]
    assert len({image["sha256"] for image in first["images"]}) == 1
    [failure] = read_lines(output, "failures", s3_endpoint)
    assert failure["error"]["class"] == "image_not_found"
    assert committed_ordinals(output, s3_endpoint) == dict.fromkeys(range(10), 1)


def test_fields_of_the_user_reach_result_and_failure(tmp_path):
    extra = {"expected": "a", "metadata": {"split": "test"}, "label": [1, {"x": None}]}
    lines = [
        {"id": "good", "prompt": "x", **extra},
        {"id": "bad", "prompt": "x", "images": ["none.png"], **extra},
    ]
    manifest = write(tmp_path / "m.jsonl", lines)
    run_job(tmp_path, manifest, tmp_path / "out", limits={"max_failure_rate": 1.0})
    for kind in ("results", "failures"):
        [line] = read_lines(f"{tmp_path}/out/m", kind)
        assert {name: line[name] for name in extra} == extra


def test_each_bad_record_fails_alone_with_stage_and_class(tmp_path):
    (tmp_path / "big.png").write_bytes(b"x" * 2000)
    lines = [
        *records(60),
        {"id": "missing", "prompt": "x", "images": ["none.png"]},
        {"id": "web", "prompt": "x", "images": ["http://example.com/a.png?signature=secret"]},
        {"id": "big", "prompt": "x", "images": ["big.png"]},
        {"id": "long", "prompt": "refuse"},
        {"id": "r3", "prompt": "a duplicate"},
        "this is not JSON",
    ]
    manifest = write(tmp_path / "m.jsonl", lines)
    report = run_job(tmp_path, manifest, tmp_path / "out", limits={"max_image_bytes": 1000})
    failures = failures_by_id(f"{tmp_path}/out/m")
    assert {name: (e["stage"], e["class"]) for name, e in failures.items()} == {
        "missing": ("fetch", "image_not_found"),
        "web": ("fetch", "image_forbidden"),
        "big": ("fetch", "image_too_large"),
        "long": ("prepare", "prompt_too_long"),
        "r3": ("manifest", "duplicate_id"),
        None: ("manifest", "invalid_line"),
    }
    assert "secret" not in json.dumps(failures)
    counts = report["counts"]
    assert (counts["succeeded"], counts["failed"], counts["skipped"]) == (60, 5, 1)
    assert counts["records"] == 66


def test_a_finished_job_run_again_asks_nothing(tmp_path, fake_engine):
    manifest = write(tmp_path / "m.jsonl", records(20))
    first = run_job(tmp_path, manifest, tmp_path / "out")
    asked = fake_engine.read_text()
    start = time.monotonic()
    assert run_job(tmp_path, manifest, tmp_path / "out") == first
    assert time.monotonic() - start < 3
    assert fake_engine.read_text() == asked


@pytest.mark.parametrize(
    "change, named",
    [
        ({"generation": {"max_new_tokens": 7}}, "generation.max_new_tokens was 512 and is 7"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"limit": 3}, "limit was null and is 3"),
        ({"engine": {"dtype": "bfloat16"}}, 'dtype was "float32" and is "bfloat16"'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_job_is_refused_and_the_difference_is_named(tmp_path, change, named):
    manifest = write(tmp_path / "m.jsonl", records(5))
    run_job(tmp_path, manifest, tmp_path / "out")
    with pytest.raises(IdentityError, match=named):
        run_job(tmp_path, manifest, tmp_path / "out", **change)


def test_a_changed_manifest_is_another_job_and_a_copy_is_not(tmp_path, fake_engine):
    manifest = write(tmp_path / "m.jsonl", records(5))
    run_job(tmp_path, manifest, tmp_path / "out")
    asked = fake_engine.read_text()
    write(manifest, records(5))  # the same bytes, written anew
    run_job(tmp_path, manifest, tmp_path / "out")
    assert fake_engine.read_text() == asked
    write(manifest, records(6))
    with pytest.raises(IdentityError, match="manifest was"):
        run_job(tmp_path, manifest, tmp_path / "out")


def test_another_batch_size_or_failure_rate_is_the_same_job(tmp_path, fake_engine):
    manifest = write(tmp_path / "m.jsonl", records(5))
    run_job(tmp_path, manifest, tmp_path / "out")
    asked = fake_engine.read_text()
    run_job(
        tmp_path,
        manifest,
        tmp_path / "out",
        engine={"max_batch_size": 2, "dtype": "float32"},
        limits={"max_failure_rate": 0.5},
    )
    assert fake_engine.read_text() == asked


def test_too_many_failures_fail_the_job_and_a_higher_rate_mends_it(tmp_path, fake_engine):
    manifest = write(tmp_path / "m.jsonl", [*records(8), *[{"id": "x", "prompt": "refuse"}] * 1])
    with pytest.raises(TooManyFailuresError, match=r"1 of 9 records failed.*prompt_too_long 1"):
        run_job(tmp_path, manifest, tmp_path / "out")
    assert not (tmp_path / "out/m/_SUCCESS.json").exists()
    asked = fake_engine.read_text()
    run_job(tmp_path, manifest, tmp_path / "out", limits={"max_failure_rate": 0.2})
    assert (tmp_path / "out/m/_SUCCESS.json").exists()
    assert fake_engine.read_text() == asked


def test_a_job_without_a_single_success_fails(tmp_path):
    manifest = write(tmp_path / "m.jsonl", [{"id": "x", "prompt": "refuse"}])
    with pytest.raises(TooManyFailuresError, match="none of the 1 records succeeded"):
        run_job(tmp_path, manifest, tmp_path / "out", limits={"max_failure_rate": 1.0})


def test_records_that_kill_the_engine_are_found_and_nobody_else_is_lost(tmp_path):
    lines = records(100)
    lines[17]["prompt"] = "die"
    lines[63]["prompt"] = "die"
    manifest = write(tmp_path / "m.jsonl", lines)
    report = run_job(tmp_path, manifest, tmp_path / "out")
    failures = failures_by_id(f"{tmp_path}/out/m")
    assert set(failures) == {"r17", "r63"}
    assert all(error["class"] == "engine_died" for error in failures.values())
    assert "exit code 7" in failures["r17"]["message"]
    assert report["counts"]["succeeded"] == 98


def test_a_record_on_which_a_step_fails_is_asked_once_more_and_alone(tmp_path, fake_engine):
    lines = records(30)
    lines[4]["prompt"] = "fault"
    manifest = write(tmp_path / "m.jsonl", lines)
    run_job(tmp_path, manifest, tmp_path / "out")
    failures = failures_by_id(f"{tmp_path}/out/m")
    assert (failures["r4"]["class"], failures["r4"]["attempts"]) == ("engine_fault", 2)
    assert times_asked(fake_engine) == {n: 2 if n == 4 else 1 for n in range(30)}


def test_an_engine_that_falls_silent_is_ended_and_the_culprit_found(tmp_path):
    lines = records(3)
    lines[1]["prompt"] = "hang"
    manifest = write(tmp_path / "m.jsonl", lines)
    limits = {"engine_silence_seconds": 0.7, "max_failure_rate": 0.5}
    report = run_job(tmp_path, manifest, tmp_path / "out", limits=limits)
    failures = failures_by_id(f"{tmp_path}/out/m")
    assert list(failures) == ["r1"]
    assert "SIGKILL" in failures["r1"]["message"]
    assert report["counts"]["succeeded"] == 2


def test_a_model_that_the_engine_refuses_is_told_in_its_own_words(tmp_path):
    manifest = write(tmp_path / "m.jsonl", records(1))
    from tests.job.jobs import make_model

    model = make_model(tmp_path / "broken")
    with pytest.raises(SpecError, match="the model is broken") as caught:
        run_job(tmp_path, manifest, tmp_path / "out", model=str(model))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("policy", "told"),
    [(0, "KV cache\n"), (8, "KV cache of 8 bits\n"), (16, "KV cache in float8\n")],
)
def test_log_and_report_say_how_keys_and_values_are_stored(tmp_path, capsys, policy, told):
    manifest = write(tmp_path / "m.jsonl", records(1))
    report = run_job(tmp_path, manifest, tmp_path / "out", engine={"quant_policy": policy})
    assert report["engine"]["quant_policy"] == policy
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("quant", "told"), [(None, "float32, "), ("int8", "float32 with weights in int8, ")]
)
def test_log_and_report_say_how_weights_are_kept(tmp_path, capsys, quant, told):
    manifest = write(tmp_path / "m.jsonl", records(1))
    report = run_job(tmp_path, manifest, tmp_path / "out", engine={"quant": quant})
    assert report["engine"]["quant"] == quant
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("what", ["manifest", "model"])
def test_a_path_that_does_not_exist_ends_the_job_before_an_engine_starts(
    tmp_path, fake_engine, what
):
    manifest = write(tmp_path / "m.jsonl", records(1))
    with pytest.raises((ManifestError, SpecError), match="nowhere"):
        run_job(
            tmp_path, **({"manifest": manifest, "output": tmp_path / "out"} | {what: "nowhere"})
        )
    assert not fake_engine.exists()


def test_an_output_that_no_try_will_write_is_not_worth_another(tmp_path):
    manifest = write(tmp_path / "m.jsonl", records(3))
    with pytest.raises(ObjectForbiddenError, match="cannot write .*/m.jsonl/m/.*: Not a directory"):
        run_job(tmp_path, manifest, manifest)


def test_what_is_sampled_depends_on_the_record_and_the_jobs_seed(tmp_path):
    lines = [{"id": name, "prompt": "the same"} for name in ("a", "b")]
    manifest = write(tmp_path / "m.jsonl", lines)

    def texts(name: str, **spec) -> list[str]:
        run_job(tmp_path, manifest, tmp_path / name, generation={"do_sample": True}, **spec)
        return [line["text"] for line in read_lines(f"{tmp_path}/{name}/m", "results")]

    first = texts("one")
    assert first[0] != first[1]
    assert texts("two") == first
    assert texts("three", seed=1) != first


def test_a_records_own_generation_options_override_the_jobs(tmp_path):
    lines = [
        {"id": "a", "prompt": "x", "generation": {"random_seed": 5}},
        {"id": "b", "prompt": "x", "generation": {"random_seed": 5}},
        {"id": "c", "prompt": "x"},
    ]
    manifest = write(tmp_path / "m.jsonl", lines)
    run_job(tmp_path, manifest, tmp_path / "out", generation={"do_sample": True})
    a, b, c = (line["text"] for line in read_lines(f"{tmp_path}/out/m", "results"))
    assert a == b != c


def test_a_limit_takes_the_first_records_only(tmp_path):
    manifest = write(tmp_path / "m.jsonl", ["broken", *records(10)])
    report = run_job(tmp_path, manifest, tmp_path / "out", limit=4, name="short",
                     limits={"max_failure_rate": 0.5})  # fmt: skip
    assert report["counts"]["records"] == 4
    results = read_lines(f"{tmp_path}/out/short", "results")
    assert [line["id"] for line in results] == ["r0", "r1", "r2"]
