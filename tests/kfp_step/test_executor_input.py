"""What KFP tells a step, read and answered: where outputs go, and what is no ExecutorInput."""

import json
from pathlib import Path

import pytest

from vlmflow.job.errors import SpecError
from vlmflow.kfp_step import executor_input as module
from vlmflow.kfp_step.executor_input import Artifact, ExecutorInput, OutputNames, StepOutputs

NAMES = OutputNames(frozenset({"count", "names"}), frozenset({"results", "page"}))


def given(folder: Path, uri: str = "{folder}/results") -> str:
    """As KFP writes it, with fields that a step needs none of."""
    return json.dumps(
        {
            "inputs": {"parameterValues": {"spec": "{}"}},
            "outputs": {
                "outputFile": f"{folder}/executor_output.json",
                "parameters": {
                    "count": {"outputFile": f"{folder}/deep/count"},
                    "names": {"outputFile": f"{folder}/names"},
                },
                "artifacts": {
                    "results": {
                        "artifacts": [
                            {
                                "name": "projects/1/results",
                                "type": {"schemaTitle": "system.Dataset"},
                                "uri": uri.format(folder=folder),
                                "metadata": {},
                            }
                        ]
                    },
                    "page": {"artifacts": [{"name": "page", "uri": f"{folder}/page"}]},
                },
            },
        }
    )


OUTPUTS = StepOutputs(
    {"count": 3, "names": ["a", "ä"], "unasked": True},
    {
        "results": Artifact({"records": 3}, uri="s3://data/out/results/"),
        "page": Artifact({"display_name": "page"}, b"<html>"),
        "unasked": Artifact(content=b""),
    },
)


def told(folder: Path) -> dict:
    return json.loads((folder / "executor_output.json").read_text())


def test_a_step_leaves_what_its_component_declares_and_no_more(tmp_path):
    executor_input = ExecutorInput.parse(given(tmp_path))
    executor_input.check(NAMES)
    executor_input.write(OUTPUTS)
    assert (tmp_path / "deep" / "count").read_text() == "3"
    assert (tmp_path / "names").read_text() == '["a", "ä"]'
    assert (tmp_path / "page").read_bytes() == b"<html>"
    assert told(tmp_path) == {
        "artifacts": {
            "results": {
                "artifacts": [
                    {
                        "name": "projects/1/results",
                        "uri": "s3://data/out/results/",
                        "metadata": {"records": 3, "uri": "s3://data/out/results/"},
                    }
                ]
            },
            "page": {
                "artifacts": [
                    {
                        "name": "page",
                        "uri": f"{tmp_path}/page",
                        "metadata": {"display_name": "page"},
                    }
                ]
            },
        }
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "deep",
        "executor_output.json",
        "names",
        "page",
    ]


@pytest.mark.parametrize("scheme", ["s3", "minio", "gs"])
def test_an_artifact_that_the_launcher_uploads_stays_where_kfp_put_it(
    tmp_path, monkeypatch, scheme
):
    # A URI outside the run's pipeline root would fail the task: it goes into the metadata, and into
    # a small file for those who open the artifact.
    monkeypatch.setattr(module, "_MOUNTS", {f"{scheme}://": f"{tmp_path}/mount/"})
    uri = f"{scheme}://kfp/root/run/results"
    ExecutorInput.parse(given(tmp_path, uri)).write(OUTPUTS)
    artifact = told(tmp_path)["artifacts"]["results"]["artifacts"][0]
    assert artifact["uri"] == uri
    assert artifact["metadata"] == {"records": 3, "uri": "s3://data/out/results/"}
    file = tmp_path / "mount" / "kfp" / "root" / "run" / "results"
    assert json.loads(file.read_text()) == artifact["metadata"]


def test_the_launchers_own_folders_are_those_of_its_schemes():
    assert module._MOUNTS == {"gs://": "/gcs/", "minio://": "/minio/", "s3://": "/s3/"}


@pytest.mark.parametrize("text", ["{}", '{"inputs": {}}', '{"outputs": {}}'])
def test_a_component_without_outputs_is_left_none(text, tmp_path):
    executor_input = ExecutorInput.parse(text)
    executor_input.check(NAMES)
    executor_input.write(OUTPUTS)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{$}}", "it is not JSON"),
        ("[]", "it must be an object"),
        ('{"outputs": []}', None),
        ('{"outputs": {"parameters": {"count": {}}}}', "KeyError: 'outputFile'"),
        ('{"outputs": {"parameters": {"count": 5}}}', "TypeError"),
        ('{"outputs": {"artifacts": {"a": {"artifacts": [{}]}}}}', "KeyError: 'uri'"),
        (
            '{"outputs": {"artifacts": {"a": {"artifacts": [{"uri": "hdfs://x"}]}}}}',
            "artifact 'a' has the URI 'hdfs://x'; known are gs://, minio://, s3://",
        ),
    ],
)
def test_what_is_no_executor_input_is_told_in_a_sentence(text, reason):
    if reason is None:
        assert ExecutorInput.parse(text) == ExecutorInput(None, {}, {})
        return
    with pytest.raises(SpecError, match="is no ExecutorInput of KFP: ") as error:
        ExecutorInput.parse(text)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_an_output_that_the_command_will_not_have_is_refused_before_it_runs(tmp_path):
    executor_input = ExecutorInput.parse(given(tmp_path))
    with pytest.raises(SpecError, match="the output parameter 'names', which its command does not"):
        executor_input.check(OutputNames(frozenset({"count"}), NAMES.artifacts))
    with pytest.raises(SpecError, match="the artifact 'page', .*; it writes results"):
        executor_input.check(OutputNames(NAMES.parameters, frozenset({"results"})))


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "deep").write_text("in the way")
    with pytest.raises(SpecError, match="cannot write KFP's output '.*/deep/count': "):
        ExecutorInput.parse(given(tmp_path)).write(OUTPUTS)
