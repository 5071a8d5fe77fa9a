"""A model as a judge: through the job's own machinery, and through MLflow's judges."""

import http.server
import json
import shlex
import sys
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from examples.demo import CHECKPOINT
from tests.job.jobs import make_model, records, write_manifest
from vlmflow.cli import main
from vlmflow.evaluation.answer import Answer
from vlmflow.evaluation.judge import JudgeModel, fill, mlflow_judge
from vlmflow.job.engine_process import COMMAND_VARIABLE
from vlmflow.job.errors import SpecError

ROOT = Path(__file__).parents[2]
JUDGING = shlex.join([sys.executable, str(Path(__file__).with_name("judging_engine.py"))])


@pytest.fixture
def judging(monkeypatch) -> None:
    path = [str(ROOT / "engine"), str(ROOT / "components"), str(ROOT)]
    monkeypatch.setenv("PYTHONPATH", ":".join(path))
    monkeypatch.setenv(COMMAND_VARIABLE, JUDGING)


def scores(output: Path, name: str = "judge") -> dict[str, float | None]:
    rows = pq.read_table(output / "evaluation.parquet").to_pylist()
    return {row["id"]: row[f"score.{name}"] for row in rows}


@pytest.fixture
def output(finished, tmp_path) -> Path:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    lines = [
        {"id": "right", "prompt": "What is {answer}?", "images": ["a.png"], "expected": "a cat"},
        {"id": "wrong", "prompt": "What?", "expected": "a cat"},
        {"id": "gone", "prompt": "What?", "images": ["no.png"], "expected": "a cat"},
        {"id": "two", "prompt": "What?", "expected": "a cat"},
        {"id": "unclear", "prompt": "What?", "expected": "a cat"},
    ]
    answers = {"right": "a cat", "wrong": "{expected}", "two": "two", "unclear": "mumble"}
    return finished(lines, answers)


@pytest.mark.usefixtures("judging")
def test_checkpoint_judges_every_answer_by_a_job_of_its_own(output, tmp_path, capsys):
    model = str(make_model(tmp_path / "judge-model"))
    arguments = ["evaluate", "--results", str(output), "--scorers", "exact_match,judge"]
    arguments += ["--judge-model", model]
    assert main(arguments) == 0
    assert scores(output) == {"right": 1, "wrong": 0, "gone": 0, "two": 0.25, "unclear": None}
    assert "judge could not score 1 answers" in capsys.readouterr().out
    [report] = (output / "evaluation").glob("judge-*/report.json")
    judged = json.loads(report.read_text())
    assert judged["counts"]["records"] == 4, "what failed is not judged"
    [reply] = [
        line
        for line in (report.parent / "results/00000.jsonl").read_text().splitlines()
        if json.loads(line)["id"] == "0"
    ]
    assert "1 images" in json.loads(reply)["text"], "the judge sees the image"
    # A second time nothing is asked again.
    assert main(arguments) == 0
    assert "this job is complete already" in capsys.readouterr().err


@pytest.mark.usefixtures("judging")
def test_scale_is_an_option(output, tmp_path):
    model = str(make_model(tmp_path / "judge-model"))
    arguments = ["evaluate", "--results", str(output), "--judge-model", model]
    assert main([*arguments, "--scorers", "judge(scale=2)"]) == 0
    assert scores(output) == {"right": 1, "wrong": 0, "gone": 0, "two": 1, "unclear": None}
    assert main([*arguments, "--scorers", "judge(scale=1)"]) == 2


@pytest.mark.usefixtures("judging")
def test_run_judges_its_own_answers(tmp_path):
    manifest = write_manifest(tmp_path / "m.jsonl", [*records(3), "no JSON"])
    model = str(make_model(tmp_path / "model"))
    code = main(
        [
            "run", "--manifest", str(manifest), "--model", model, "--output", str(tmp_path / "out"),
            "--no-mlflow", "--evaluate", "judge", "--judge-model", model,
            "--max-failure-rate", "1",
        ]
    )  # fmt: skip
    assert code == 0
    report = json.loads((tmp_path / "out/m/report.json").read_text())
    score = report["evaluation"]["scores"]["judge"]
    assert (score["mean"], score["scored"]) == (0, 4)
    [judged] = (tmp_path / "out/m/evaluation").glob("judge-*/report.json")
    assert json.loads(judged.read_text())["counts"]["records"] == 3


@pytest.mark.slow
def test_real_engine_gives_marks_of_the_scale(output, tmp_path, monkeypatch):
    """A model of 2 M parameters judges like a child, but by the schema."""
    monkeypatch.delenv(COMMAND_VARIABLE)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'engine'}:{ROOT / 'components'}:{ROOT}")
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{answer} or {expected}: 1 to {scale}?")
    arguments = ["evaluate", "--results", str(output), "--scorers", "judge"]
    arguments += ["--judge-model", str(CHECKPOINT), "--judge-prompt", str(prompt)]
    assert main(arguments) == 0
    marks = [mark for name, mark in scores(output).items() if name != "gone"]
    assert any(mark is not None for mark in marks)
    assert all(mark in (None, 0, 0.25, 0.5, 0.75, 1) for mark in marks)


def test_texts_are_put_in_once():
    answer = Answer("r", 0, "{expected} {scale}", {}, prompt="{answer}")
    filled = fill("{prompt}|{answer}|{expected}|{scale}|{other}", answer, ["x", "y"], 5)
    assert filled == "{answer}|{expected} {scale}|x or y|5|{other}"
    assert fill("{prompt} {expected}{answer}", Answer("r", 0, "a", {}), None, 5) == (
        "(not known) (not known)a"
    )


def test_prompt_without_the_answer_is_refused(tmp_path):
    (tmp_path / "p.txt").write_text("{prompt}")
    for file, reason in (("p.txt", r"has no \{answer\}"), ("q.txt", "cannot read")):
        with pytest.raises(SpecError, match=reason):
            JudgeModel(model="x:/y", prompt_file=str(tmp_path / file)).template()


@pytest.fixture
def server():
    """A server with OpenAI's interface that gives a 4, and remembers what it was asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        asked: list[dict] = []

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.asked.append(json.loads(body))
            content = json.dumps({"result": 4, "rationale": "near enough"})
            message = {"role": "assistant", "content": content}
            reply = json.dumps(
                {
                    "id": "1", "object": "chat.completion", "created": 1, "model": "m",
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
                }
            )  # fmt: skip
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(reply.encode())

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1", Handler.asked
        server.shutdown()
        thread.join()


def test_judge_of_mlflow_is_asked_with_the_same_texts(server, monkeypatch):
    url, asked = server
    monkeypatch.setenv("OPENAI_API_KEY", "nobody's")
    judge = mlflow_judge("judge", JudgeModel(model="openai:/m", base_url=url), 5)
    answer = Answer("r", 0, "a dog", {}, prompt="What is it?")
    assert judge.score(answer, "a cat") == 0.75
    sent = json.dumps(asked)
    assert "What is it?" in sent and "a dog" in sent and "a cat" in sent
