"""Whole jobs whose manifest is another system's, and whose results are written for it."""

import json
from pathlib import Path

import pyarrow.parquet
import pytest
from jsonschema import Draft202012Validator

from tests.job.jobs import read_lines, run_job
from tests.job.jobs import write_manifest as write
from vlmflow.job.report import read_schema

ALL = ["openai", "anthropic", "bedrock", "gemini", "parquet"]


pytestmark = pytest.mark.usefixtures("fake_engine")


def chat(name: str, text: str) -> dict:
    messages = [{"role": "user", "content": text}]
    body = {"model": "m", "messages": messages, "max_tokens": 5}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_an_openai_batch_comes_back_as_output_and_errors(tmp_path: Path) -> None:
    lines = [*(chat(f"r{n}", f"question {n}") for n in range(30)), chat("long", "refuse"), "bad"]
    manifest = write(tmp_path / "batch.jsonl", lines)
    report = run_job(tmp_path, manifest, tmp_path / "out", output_dialects=["openai"], num_shards=3)
    assert report["counts"]["succeeded"] == 30
    output = tmp_path / "out/batch"
    texts = {line["id"]: line["text"] for line in read_lines(str(output), "results")}
    answers = lines_of(output / "outputs/openai/output.jsonl")
    assert [line["custom_id"] for line in answers] == [f"r{n}" for n in range(30)]
    for line in answers:
        body = line["response"]["body"]
        assert line["response"]["status_code"] == 200 and line["error"] is None
        assert body["choices"][0]["message"]["content"] == texts[line["custom_id"]]
        assert body["model"] == "m"
    errors = lines_of(output / "outputs/openai/errors.jsonl")
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [
        ("long", "prompt_too_long"),
        (None, "invalid_line"),
    ]


def test_any_manifest_can_be_written_in_every_dialect(tmp_path: Path) -> None:
    rows = "id,prompt,label\n" + "".join(f"r{n},what is {n}?,{n}\n" for n in range(12))
    manifest = tmp_path / "table.csv"
    manifest.write_text(rows)
    report = run_job(tmp_path, manifest, tmp_path / "out", output_dialects=ALL)
    assert report["counts"]["succeeded"] == 12
    outputs = tmp_path / "out/table/outputs"
    assert report["results"]["outputs"] == f"{outputs}/"
    Draft202012Validator(read_schema()).validate(report)
    counts = json.loads((outputs / "bedrock/manifest.json.out").read_text())
    assert (counts["totalRecordCount"], counts["successRecordCount"]) == (12, 12)
    for name in ("openai/output.jsonl", "anthropic/results.jsonl", "bedrock/manifest.jsonl.out"):
        assert len(lines_of(outputs / name)) == 12
    assert len(lines_of(outputs / "gemini/predictions.jsonl")) == 12
    table = pyarrow.parquet.read_table(outputs / "parquet/results.parquet").to_pylist()
    results = read_lines(str(tmp_path / "out/table"), "results")
    assert [(row["id"], row["text"]) for row in table] == [(r["id"], r["text"]) for r in results]
    assert json.loads(table[3]["metadata"]) == {"metadata": {"label": "3"}}


def test_a_folder_of_images_with_one_prompt_is_a_job(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "sub/c.webp", "notes.txt"):
        (folder / name).write_bytes(name.encode())
    report = run_job(
        tmp_path, f"{folder}/", tmp_path / "out", prompt="What is it?", name="pictures"
    )
    assert report["counts"]["succeeded"] == 3
    ids = [line["id"] for line in read_lines(str(tmp_path / "out/pictures"), "results")]
    assert ids == ["a.jpg", "b.png", "sub/c.webp"]
    again = run_job(tmp_path, f"{folder}/", tmp_path / "out", prompt="What is it?", name="pictures")
    assert again == report
