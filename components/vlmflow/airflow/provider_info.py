"""What Airflow is told of this provider. Airflow reads it in every process it starts."""

from typing import Any

_PACKAGE = "vlmflow.airflow"
_INTEGRATION = "vlmflow"
_OPERATORS = (
    "batch_inference",
    "plan_shards",
    "merge",
    "evaluate",
    "compare",
    "pod",
    "kubernetes_job",
)
_LINKS = ("MLflowRunLink", "ReportLink", "ResultsLink")


def make_provider_info() -> dict[str, Any]:
    """Describe the provider, as Airflow's provider_info.schema.json says."""
    from vlmflow import __version__

    return {
        "package-name": "vlmflow",
        "name": "vlmflow",
        "description": "Vision-language models over S3 manifests.",
        "versions": [__version__],
        "integrations": [
            {"integration-name": _INTEGRATION, "external-doc-url": "", "tags": ["ai", "software"]}
        ],
        "operators": [_modules("operators", *_OPERATORS)],
        "sensors": [_modules("sensors", "manifest")],
        "triggers": [_modules("triggers", "kubernetes_job", "manifest", "progress")],
        "hooks": [_modules("hooks", "vlmflow")],
        "connection-types": [_connection_type()],
        "extra-links": [f"{_PACKAGE}.links.job.{name}" for name in _LINKS],
        "task-decorators": [
            {"name": "vlm_batch", "class-name": f"{_PACKAGE}.decorators.vlm_batch.vlm_batch_task"}
        ],
    }


def _modules(folder: str, *names: str) -> dict[str, Any]:
    modules = [f"{_PACKAGE}.{folder}.{name}" for name in names]
    return {"integration-name": _INTEGRATION, "python-modules": modules}


def _connection_type() -> dict[str, Any]:
    """The form as data, so that the API server need not import the hook.

    The hook's own methods say the same, for versions of Airflow that ask it.
    """
    from vlmflow.airflow.connection_form import EXTRA_FIELDS, HIDDEN_FIELDS, PLACEHOLDERS, RELABELED

    return {
        "connection-type": "vlmflow",
        "hook-class-name": f"{_PACKAGE}.hooks.vlmflow.VLMFlowHook",
        "hook-name": "vlmflow",
        "ui-field-behaviour": {
            "hidden-fields": list(HIDDEN_FIELDS),
            "relabeling": dict(RELABELED),
            "placeholders": dict(PLACEHOLDERS),
        },
        "conn-fields": {
            field.name: {
                "label": field.label,
                "description": field.description,
                "schema": {"type": ["string", "null"]},
            }
            for field in EXTRA_FIELDS
        },
    }
