"""What Kubeflow Pipelines tells a container of its step, and where it wants the step's outputs.

KFP puts its ExecutorInput, as JSON, in place of `{{$}}` in a component's arguments. It names a file
for each output parameter; an artifact's content goes into the file that its URI stands for, and
what is to be known of artifacts into executor_output.json, an ExecutorOutput. Both are messages of
KFP's pipeline_spec.proto; this reads and writes what a step needs of them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmflow.job.errors import SpecError

# Where KFP's launcher looks for an artifact's file (LocalPathForURI of its launcher_v2.go); on
# kfp.local an artifact's URI is its path.
_MOUNTS = {"gs://": "/gcs/", "minio://": "/minio/", "s3://": "/s3/"}


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a step leaves as an artifact."""

    metadata: dict[str, Any] = field(default_factory=dict)
    content: bytes | None = None  # of its file; None: it has none
    uri: str | None = None  # where what it stands for is already; None: its file is all


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """All that a step can leave; a component declares what it wants of it."""

    parameters: dict[str, Any]
    artifacts: dict[str, Artifact]


@dataclass(frozen=True, slots=True)
class OutputNames:
    """What a step can be asked for, known before it is done."""

    parameters: frozenset[str]
    artifacts: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Slot:
    """An artifact that a component declares."""

    name: str  # KFP's own, which it wants back
    uri: str
    path: Path

    @property
    def is_stored(self) -> bool:
        """Whether KFP's launcher will take its file to an object store."""
        return str(self.path) != self.uri


@dataclass(frozen=True, slots=True)
class ExecutorInput:
    """A step's ExecutorInput, as far as it says where outputs go."""

    output_file: Path | None
    parameters: dict[str, Path]
    artifacts: dict[str, _Slot]

    @classmethod
    def parse(cls, text: str) -> "ExecutorInput":
        """Read KFP's JSON. Raises SpecError for what is none."""
        try:
            outputs = _mapping(json.loads(text), "it").get("outputs") or {}
            parameters = _mapping(outputs, "outputs").get("parameters") or {}
            artifacts = outputs.get("artifacts") or {}
            output_file = outputs.get("outputFile")
            return cls(
                None if output_file is None else Path(output_file),
                {name: Path(item["outputFile"]) for name, item in parameters.items()},
                {
                    name: _slot(name, item["artifacts"][0])
                    for name, item in artifacts.items()
                    if item.get("artifacts")
                },
            )
        except ValueError as error:
            reason = "it is not JSON" if isinstance(error, json.JSONDecodeError) else str(error)
        except (AttributeError, KeyError, TypeError) as error:
            reason = f"a field is missing or of another kind ({type(error).__name__}: {error})"
        raise SpecError(
            f"--executor-input {text[:80]!r} is no ExecutorInput of KFP: {reason}; a component "
            "gives it as dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER"
        )

    def check(self, names: OutputNames) -> None:
        """Raises SpecError for an output that the step will not have, before it is done."""
        for kind, asked, known in (
            ("output parameter", self.parameters, names.parameters),
            ("artifact", self.artifacts, names.artifacts),
        ):
            if unknown := sorted(set(asked) - known):
                raise SpecError(
                    f"this component declares the {kind} {unknown[0]!r}, which its command does "
                    f"not write; it writes {', '.join(sorted(known))}"
                )

    def write(self, outputs: StepOutputs) -> None:
        """Write what the component declares. Raises SpecError if a file cannot be written."""
        for name, path in self.parameters.items():
            _write(path, _as_text(outputs.parameters[name]).encode())
        told = {name: self._put(slot, outputs.artifacts[name]) for name, slot in self._slots()}
        if self.output_file is not None:
            content = {"artifacts": {name: {"artifacts": [item]} for name, item in told.items()}}
            _write(self.output_file, json.dumps(content, ensure_ascii=False).encode())

    def _slots(self) -> list[tuple[str, _Slot]]:
        return list(self.artifacts.items())

    @staticmethod
    def _put(slot: _Slot, artifact: Artifact) -> dict[str, Any]:
        """Write an artifact's file, and return its RuntimeArtifact."""
        uri, content, metadata = slot.uri, artifact.content, dict(artifact.metadata)
        if artifact.uri is not None:
            metadata["uri"] = artifact.uri
            if slot.is_stored:
                # The launcher uploads to whatever URI stands here, and fails the task for one that
                # is not below the run's own pipeline root ("does not have expected bucket
                # prefix": uploadOutputArtifacts in backend/src/v2/component/launcher_v2.go,
                # KeyFromURI in backend/src/v2/objectstore/config.go of kubeflow/pipelines). So the
                # artifact stays where KFP put it and says where the results are.
                content = (json.dumps(metadata, indent=1, ensure_ascii=False) + "\n").encode()
            else:
                uri = artifact.uri
        if content is not None:
            _write(slot.path, content)
        return {"name": slot.name, "uri": uri, "metadata": metadata}


def _slot(name: str, artifact: Mapping[str, Any]) -> _Slot:
    uri = str(artifact["uri"])
    path = uri
    for prefix, mount in _MOUNTS.items():
        if uri.startswith(prefix):
            path = mount + uri.removeprefix(prefix)
    if "://" in path:
        raise ValueError(f"artifact {name!r} has the URI {uri!r}; known are {', '.join(_MOUNTS)}")
    return _Slot(str(artifact.get("name", name)), uri, Path(path))


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} must be an object")
    return value


def _as_text(value: Any) -> str:
    """As KFP reads it again: a text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise SpecError(f"cannot write KFP's output {str(path)!r}: {error.strerror}") from error
