"""Airflow's face of vlmflow: operators, a sensor, triggers and a hook. Nothing here imports torch.

Airflow imports this module to find the provider, in every process it starts: whatever is heavy is
imported where it is used. `from vlmflow.airflow import VLMBatchInferenceOperator` loads that
operator and no other.
"""

from importlib import import_module
from typing import Any

_PLACES = {
    "VLMBatchInferenceOperator": "operators.batch_inference",
    "VLMBatchInferencePodOperator": "operators.pod",
    "VLMBatchInferenceJobOperator": "operators.kubernetes_job",
    "VLMPlanShardsOperator": "operators.plan_shards",
    "VLMMergeOperator": "operators.merge",
    "VLMEvaluateOperator": "operators.evaluate",
    "VLMCompareOperator": "operators.compare",
    "VLMManifestSensor": "sensors.manifest",
    "VLMFlowHook": "hooks.vlmflow",
    "results_asset": "assets",
}

__all__ = ["get_provider_info", *_PLACES]  # noqa: PLE0604


def get_provider_info() -> dict[str, Any]:
    """Describe the provider, as Airflow's provider_info.schema.json says."""
    from vlmflow.airflow.provider_info import make_provider_info

    return make_provider_info()


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
