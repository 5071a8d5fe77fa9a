"""The manifest of a job's results, if it is still to be had."""

from collections.abc import Callable

from vlmflow.evaluation.prompts import Questions
from vlmflow.evaluation.results import Results
from vlmflow.job.errors import ManifestError
from vlmflow.job.store import StoreOpener


def questions_of(
    results: Results, opener: StoreOpener, say: Callable[[str], None]
) -> Questions | None:
    """What a job's report names; None if there is no report, or the manifest is gone."""
    if results.report is None:
        return None
    spec = results.report["job"]["spec"]
    try:
        return Questions(opener, spec["manifest"], spec)
    except ManifestError as error:
        say(f"{error}; going on without prompts")
        return None
