"""What others may read of a job: a pod, a pipeline's parameters. No credential may stand in it."""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from vlmflow.job.errors import SpecError
from vlmflow.job.store.locate import without_query

if TYPE_CHECKING:
    from vlmflow.job.spec import JobSpec

# A step is told the spec twice, in its arguments and in KFP's executor input, where its quotes are
# escaped; Linux takes 128 KiB of one argument.
MAX_PIPELINE_BYTES = 48 << 10

_SECRET_NAMES = re.compile(
    r"(PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY)", re.IGNORECASE
)
# They hold such a word and no secret: files, addresses, and switches.
_HARMLESS_NAMES = re.compile(r"(_FILE|_PATH|_URI|_URL|_DIR)$|^TOKENIZERS_", re.IGNORECASE)


def shown_json(spec: "JobSpec", where: str, remedy: str, *, holder: str, max_bytes: int) -> str:
    """The canonical bytes of a spec that many may read.

    Raises SpecError for a credential in it, and for what `holder` has no room for.
    """
    uri = spec.tracking.uri
    if uri is not None and without_query(uri) != uri:
        raise SpecError(
            f"tracking.uri {without_query(uri)!r} must have no user, password or query in {where}, "
            "whose spec many may read; give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
            f"{remedy}"
        )
    text = spec.canonical_json()
    size = len(text.encode())
    if size > max_bytes:
        raise SpecError(
            f"the spec has {size} bytes, {holder} holds {max_bytes}; keep long prompts in the "
            "manifest"
        )
    return text


def spec_for_pipeline(spec: "JobSpec") -> str:
    """The bytes that a pipeline hands from step to step. Raises SpecError as `shown_json`."""
    return shown_json(
        spec,
        "a pipeline",
        "to its steps as a Kubernetes Secret",
        holder="a pipeline's parameter",
        max_bytes=MAX_PIPELINE_BYTES,
    )


def plain_credentials(variables: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """The names of variables whose value is a credential in plain text."""
    for name, value in variables:
        is_url_with_more = isinstance(value, str) and without_query(value) != value
        if value and (_is_secret_name(name) or is_url_with_more):
            yield name


def _is_secret_name(name: str) -> bool:
    return bool(_SECRET_NAMES.search(name)) and not _HARMLESS_NAMES.search(name)
