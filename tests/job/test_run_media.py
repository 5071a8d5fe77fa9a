"""Whole jobs with the fake engine: the same is asked once, and fetched from allowed places only."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.job.jobs import read_lines, records, run_job
from tests.job.jobs import write_manifest as write
from vlmflow.job.errors import SpecError
from vlmflow.job.run import Assignment

pytestmark = pytest.mark.usefixtures("fake_engine")


def times_asked(log: Path) -> Counter[int]:
    return Counter(map(int, log.read_text().split()))


def results_of(tmp_path: Path) -> list[dict[str, Any]]:
    return read_lines(f"{tmp_path}/out/m", "results")


def twelve_images_under_eight_names(folder: Path) -> list[dict[str, Any]]:
    lines = []
    for name in range(8):
        for image in range(12):
            path = folder / f"{name}-{image}.png"
            path.write_bytes(b"image %d" % image)
            lines.append({"id": f"{name}-{image}", "prompt": "x", "images": [path.name]})
    return lines


def test_what_several_records_ask_alike_is_asked_once(tmp_path: Path, fake_engine: Path) -> None:
    lines = twelve_images_under_eight_names(tmp_path)
    lines[50]["metadata"] = {"mine": True}
    manifest = write(tmp_path / "m.jsonl", lines)
    report = run_job(tmp_path, manifest, tmp_path / "out")
    results = results_of(tmp_path)
    assert len(times_asked(fake_engine)) == 12
    assert len({line["text"] for line in results}) == 12
    assert [line["id"] for line in results] == [line["id"] for line in lines]
    by_id = {line["id"]: line for line in results}
    leaders = Counter(line.get("deduplicated_of") for line in results)
    assert leaders.pop(None) == 12
    assert set(leaders.values()) == {7}
    for line in results:
        leader = by_id[line.get("deduplicated_of", line["id"])]
        assert line["images"] == [
            {**image, "uri": f"{line['id']}.png"} for image in leader["images"]
        ]
        assert line["text"] == leader["text"]
    assert by_id[lines[50]["id"]]["metadata"] == {"mine": True}
    assert report["counts"] == {
        "records": 96,
        "succeeded": 96,
        "failed": 0,
        "skipped": 0,
        "deduplicated": 84,
    }
    assert report["tokens"] == {"prompt": 120, "cached": 24, "output": 36}


def test_job_may_ask_every_record_all_the_same(tmp_path: Path, fake_engine: Path) -> None:
    lines = [{"id": f"r{n}", "prompt": "the same"} for n in range(5)]
    manifest = write(tmp_path / "m.jsonl", lines)
    report = run_job(tmp_path, manifest, tmp_path / "out", deduplicate=False)
    assert times_asked(fake_engine) == dict.fromkeys(range(5), 1)
    assert report["counts"]["deduplicated"] == 0


def test_records_that_draw_by_seeds_of_their_own_are_asked_each(
    tmp_path: Path, fake_engine: Path
) -> None:
    seeds = [None, None, 7, 7, 8]
    lines = [
        {"id": f"r{n}", "prompt": "x", "generation": {} if seed is None else {"random_seed": seed}}
        for n, seed in enumerate(seeds)
    ]
    manifest = write(tmp_path / "m.jsonl", lines)
    run_job(tmp_path, manifest, tmp_path / "out", generation={"do_sample": True})
    results = results_of(tmp_path)
    assert [line.get("deduplicated_of") for line in results] == [None, None, None, "r2", None]
    assert times_asked(fake_engine) == dict.fromkeys((0, 1, 2, 4), 1)


@pytest.mark.parametrize(
    ("word", "error_class", "times"),
    [("refuse", "prompt_too_long", 1), ("fault", "engine_fault", 2), ("die", "engine_died", 2)],
)
def test_failure_is_nobodys_but_the_record_that_was_asked(
    word: str, error_class: str, times: int, tmp_path: Path, fake_engine: Path
) -> None:
    lines = records(40)
    for number in (3, 4, 20, 21):
        lines[number]["prompt"] = word
    manifest = write(tmp_path / "m.jsonl", lines)
    report = run_job(tmp_path, manifest, tmp_path / "out", limits={"max_failure_rate": 0.5})
    failures = read_lines(f"{tmp_path}/out/m", "failures")
    assert [line["id"] for line in failures] == ["r3", "r4", "r20", "r21"]
    assert {line["error"]["class"] for line in failures} == {error_class}
    # The first of them may have died with others in the engine; the others go alone at once.
    asked = times_asked(fake_engine)
    assert [asked[number] for number in (4, 20, 21)] == [times] * 3
    assert report["counts"]["succeeded"] == 36
    assert report["counts"]["deduplicated"] == 0


def test_record_is_asked_anew_where_the_same_was_asked_by_another_worker(
    tmp_path: Path, fake_engine: Path
) -> None:
    lines = [{"id": f"r{n}", "prompt": "the same"} for n in range(6)]
    manifest = write(tmp_path / "m.jsonl", lines)
    for shard in range(2):
        run_job(tmp_path, manifest, tmp_path / "out", Assignment(shard=shard), num_shards=2)
    assert times_asked(fake_engine) == {0: 1, 3: 1}
    leaders = [line.get("deduplicated_of") for line in results_of(tmp_path)]
    assert leaders == [None, "r0", "r0", None, "r3", "r3"]


def test_ten_thousand_records_that_ask_the_same_take_no_more_than_their_commits(
    tmp_path: Path, fake_engine: Path
) -> None:
    lines = [{"id": f"r{n}", "prompt": "the same"} for n in range(10_000)]
    manifest = write(tmp_path / "m.jsonl", lines)
    start = time.monotonic()
    report = run_job(tmp_path, manifest, tmp_path / "out")
    assert time.monotonic() - start < 30
    assert report["counts"]["deduplicated"] == 9_999
    assert times_asked(fake_engine) == {0: 1}


def test_job_whose_images_all_lie_elsewhere_ends_before_an_engine_starts(
    tmp_path: Path, fake_engine: Path, bucket: str, s3_endpoint: str, s3_client: Any
) -> None:
    other = f"{bucket}-images"
    s3_client.create_bucket(Bucket=other)
    s3_client.put_object(Bucket=other, Key="in/a.png", Body=b"picture")
    s3_client.put_object(Bucket=other, Key="private/a.png", Body=b"picture")
    lines = [
        {"id": "r1", "prompt": "x", "images": [f"s3://{other}/in/a.png"]},
        {"id": "r2", "prompt": "x", "images": [f"s3://{other}/private/a.png"]},
    ]
    body = "\n".join(map(json.dumps, lines)).encode()
    s3_client.put_object(Bucket=bucket, Key="m.jsonl", Body=body)
    job = {"endpoint_url": s3_endpoint, "limits": {"max_failure_rate": 0.5}}
    with pytest.raises(SpecError, match=f"--allow-s3 s3://{other}.*all of the first 2 images"):
        run_job(tmp_path, f"s3://{bucket}/m.jsonl", tmp_path / "out", **job)
    assert not (tmp_path / "out").exists()
    assert not fake_engine.exists()
    media = {"allowed_s3": [f"s3://{other}/in"]}
    report = run_job(tmp_path, f"s3://{bucket}/m.jsonl", tmp_path / "out", media=media, **job)
    assert report["counts"]["succeeded"] == 1
    [failure] = read_lines(f"{tmp_path}/out/m", "failures")
    assert (failure["id"], failure["error"]["class"]) == ("r2", "image_forbidden")


@pytest.mark.parametrize("uri", ["s3:///a.png", "s3://", "s3:"])
def test_an_image_without_a_bucket_fails_its_record_and_no_other(tmp_path: Path, uri: str) -> None:
    (tmp_path / "a.png").write_bytes(b"a picture")
    good = {"id": "good", "prompt": "x", "images": ["a.png"]}
    lines = [{"id": "bad", "prompt": "x", "images": [uri]}, good, *records(8)]
    manifest = write(tmp_path / "m.jsonl", lines)
    report = run_job(tmp_path, manifest, tmp_path / "out")
    assert (report["counts"]["succeeded"], report["counts"]["failed"]) == (9, 1)
    [line] = read_lines(f"{tmp_path}/out/m", "failures")
    assert (line["id"], line["error"]["stage"]) == ("bad", "fetch")
