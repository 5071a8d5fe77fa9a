"""From an orchestrator's arguments to a JobSpec, as the command line makes it of its options."""

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from vlmflow.job.errors import SpecError
from vlmflow.job.given import given, given_group

if TYPE_CHECKING:
    from vlmflow.job.spec import JobSpec

SPEC_FIELDS = (
    "name",
    "manifest",
    "dialect",
    "prompt",
    "model_names",
    "duplicates",
    "model",
    "use_stored_options",
    "model_cache",
    "output",
    "output_dialects",
    "limit",
    "num_shards",
    "price_per_hour",
    "seed",
    "generation",
    "engine",
    "endpoint_url",
    "deduplicate",
    "media",
    "limits",
    "tracking",
    "evaluation",
)
GROUPS = ("generation", "engine", "media", "limits", "tracking", "evaluation")
_LISTS = ("model_names", "output_dialects")
_TEXTS = ("prompt", "model_cache")  # in which an empty text says something


@dataclass(frozen=True, slots=True)
class JobPlace:
    """Where a job's own folder is."""

    uri: str
    endpoint_url: str | None  # of the S3 store; None: AWS

    @classmethod
    def of(cls, spec: "JobSpec") -> "JobPlace":
        return cls(f"{spec.output.rstrip('/')}/{spec.name}", spec.endpoint_url)


def make_spec(
    arguments: dict[str, Any], *, endpoint_url: str | None = None, mlflow_uri: str | None = None
) -> "JobSpec":
    """Make a spec of an orchestrator's arguments, by the JobSpec's names.

    What is None was not given. A template can only make text: "None" counts as not given too, in a
    group as well, and so does an empty one where that says nothing; a group or a list may be JSON,
    and a list of one its only item. `endpoint_url` and `mlflow_uri` are a connection's, for a job
    that names none. Raises SpecError.
    """
    # Not at the top: a DAG that is parsed shall not wait for pydantic.
    from vlmflow.job.spec import JobSpec

    values: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in (*GROUPS, *_LISTS):
            value = given_group(name, value)
        if given(value) is None and (value in (None, "None") or name not in _TEXTS):
            continue
        if name in _LISTS and isinstance(value, str):
            value = [value]
        values[name] = str(value) if isinstance(value, PurePath) else value
    if endpoint_url is not None:
        values.setdefault("endpoint_url", endpoint_url)
    if mlflow_uri is not None and isinstance(values.get("tracking", {}), dict):
        values["tracking"] = {"uri": mlflow_uri} | values.get("tracking", {})
    missing = [name for name in ("manifest", "model", "output") if name not in values]
    if missing:
        raise SpecError(
            f"{' and '.join(missing)} must be given, and a template make something of it"
        )
    return JobSpec.parse(values)


def parse_shard(shard: Any) -> tuple[int | None, int | None]:
    """A shard's number and, if it says so, how many there are.

    Of None, 3, "3", "3/8", or {"shard": "3/8"}. Raises SpecError.
    """
    if isinstance(shard, dict):  # an item of what the plan's operator returns
        shard = shard.get("shard")
    if given(shard) is None:
        return None, None
    found = re.fullmatch(r"(\d+)(?:/(\d+))?", str(shard))
    if found is None or (found[2] is not None and not int(found[1]) < int(found[2])):
        raise SpecError(f"shard {shard!r} must be a number from 0, or I/N with I below N")
    return int(found[1]), None if found[2] is None else int(found[2])
