"""Airflow's face of vlmflow: operators, a sensor, triggers and a hook. Nothing here imports torch.

Airflow imports this module to find the provider, in every process it starts: whatever is heavy is
imported where it is used.
"""

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Describe the provider, as Airflow's provider_info.schema.json says."""
    return {
        "package-name": "vlmflow",
        "name": "vlmflow",
        "description": "Vision-language models over S3 manifests.",
    }
