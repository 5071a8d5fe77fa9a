"""A checkpoint and the engine that ran it, as MLflow's Models page compares them."""

import re
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient  # noqa: TID253  loaded on the side thread only

_DIGEST_TAG = "model.digest"
_ENGINE_TAG = "engine.key"
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What decides how good and how fast a model is. The first two say which one it is."""

    digest: str  # of the checkpoint
    engine_key: str  # what of the engine changes its answers or its speed class
    name: str
    params: dict[str, str]


def find_or_create_model(
    client: MlflowClient, experiment_id: str, run_id: str, description: ModelDescription
) -> str:
    """Return the id of the experiment's LoggedModel; the first run to want it creates it.

    Two that do so in the same second make two; from then on the older one is used.
    """
    found = client.search_logged_models(
        [experiment_id],
        f"tags.`{_DIGEST_TAG}` = '{description.digest}' "
        f"AND tags.`{_ENGINE_TAG}` = '{description.engine_key}'",
        order_by=[{"field_name": "creation_time", "ascending": True}],
        max_results=1,
    )
    if found:
        known_id: str = found[0].model_id
        return known_id
    model: Any = client.create_logged_model(
        experiment_id,
        name=_NOT_IN_NAMES.sub("-", description.name) or "model",
        source_run_id=run_id,
        tags={
            _DIGEST_TAG: description.digest,
            _ENGINE_TAG: description.engine_key,
            "mlflow.model.isExternal": "true",  # its files are not MLflow's
        },
        params=description.params,
        model_type="vision-language",
    )
    client.finalize_logged_model(model.model_id, "READY")
    model_id: str = model.model_id
    return model_id
