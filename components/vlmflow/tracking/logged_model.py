"""A checkpoint and the engine that ran it, as MLflow's Models page compares them."""

import re
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient  # noqa: TID253  loaded on the side thread only
from mlflow.exceptions import MlflowException  # noqa: TID253

_DIGEST_TAG = "model.digest"
_ENGINE_TAG = "engine.key"
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What decides how good and how fast a model is. The first two say which one it is."""

    digest: str  # of the checkpoint
    # What of the engine changes its answers or its speed class; empty: to be found out.
    engine_key: str
    name: str
    params: dict[str, str]


def find_or_create_model(
    client: MlflowClient,
    experiment_id: str,
    run_id: str,
    description: ModelDescription,
    *,
    registered_id: str | None = None,
) -> str:
    """Return the id of the experiment's LoggedModel; the first run to want it creates it.

    Two that do so in the same second make two; from then on the older one is used. A model that was
    logged before and then run (`registered_id`) is itself the one, if the engine is as it says.
    """
    if registered_id is not None and _is_it(client, registered_id, description):
        return registered_id
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
    model_id = create_model(client, experiment_id, description, run_id=run_id, is_external=True)
    client.finalize_logged_model(model_id, "READY")
    return model_id


def create_model(
    client: MlflowClient,
    experiment_id: str,
    description: ModelDescription,
    *,
    run_id: str | None = None,
    is_external: bool = False,
) -> str:
    """Create a LoggedModel, which is to be finalised, and return its id."""
    tags = {_DIGEST_TAG: description.digest}
    if description.engine_key:
        tags[_ENGINE_TAG] = description.engine_key
    if is_external:
        tags["mlflow.model.isExternal"] = "true"  # its files are not MLflow's
    model: Any = client.create_logged_model(
        experiment_id,
        name=_NOT_IN_NAMES.sub("-", description.name) or "model",
        source_run_id=run_id,
        tags=tags,
        params=description.params,
        model_type="vision-language",
    )
    model_id: str = model.model_id
    return model_id


def _is_it(client: MlflowClient, model_id: str, description: ModelDescription) -> bool:
    """Whether a model that was logged is what a run ran. The first run tells a key left open."""
    try:
        tags = client.get_logged_model(model_id).tags
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False  # the page goes to another server than the model is on
    key = tags.get(_ENGINE_TAG)
    if key is None:
        client.set_logged_model_tags(model_id, {_ENGINE_TAG: description.engine_key})
    return tags.get(_DIGEST_TAG) == description.digest and key in (None, description.engine_key)
