"""Which MLflow run is the job's: handed to us, begun by an earlier attempt, or new.

Of several workers that open a run for the same thing at the same time, each creates one, and the
register (an object that is created only once) says which of them it is. The others take theirs
back.
"""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from mlflow import MlflowClient  # noqa: TID253
from mlflow.entities import Dataset, DatasetInput, InputTag, Run, ViewType  # noqa: TID253
from mlflow.exceptions import MlflowException  # noqa: TID253

from vlmflow.tracking.experiment import find_experiment
from vlmflow.tracking.mlflow_run import MlflowRun

RUN_ID_VARIABLE = "MLFLOW_RUN_ID"  # a run that somebody else began, and will end

# By these an attempt knows the runs of earlier ones.
IDENTITY_TAG = "job.identity"
OUTPUT_TAG = "output.uri"
PART_TAG = "job.part"  # the job's own run, or a shard's
_PARENT_TAG = "mlflow.parentRunId"

_DIGEST_CHARACTERS = 36  # MLflow's limit
_MISSING = frozenset(("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"))


@dataclass(frozen=True, slots=True)
class RunDataset:
    """What a run reads."""

    name: str
    uri: str
    digest: str
    profile: dict[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """Name and digest, by which MLflow knows it."""
        return self.name, self.digest[:_DIGEST_CHARACTERS]


@dataclass(frozen=True, slots=True)
class RunDescription:
    """What a run is called and what it says of itself from its first moment."""

    name: str
    experiment: str
    tags: dict[str, str]  # with IDENTITY_TAG, OUTPUT_TAG and PART_TAG
    params: dict[str, str]
    dataset: RunDataset


class Register(Protocol):
    """Remembers which run it is, between attempts and among workers."""

    def read(self) -> str | None:
        """The run's id, or None."""

    def create(self, run: MlflowRun) -> str:
        """Remember a run, unless one is remembered already; return the id of the one that is."""


def connect(uri: str | None) -> MlflowClient:
    """A client that gives up within a minute or two; MLflow's own default tries for many."""
    for name in ("alembic", "mlflow.pyfunc", "mlflow.store.db.utils", "mlflow.utils.environment"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # urllib3 tells each retry; the job tells the first failure, once.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "40")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # we have our own
    # A busy server may ask for an hour's patience; the spool has it, this thread has not.
    os.environ.setdefault("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")
    return MlflowClient(tracking_uri=uri)


def open_run(
    client: MlflowClient,
    description: RunDescription,
    register: Register,
    *,
    attached: str | None = None,
    parent: MlflowRun | None = None,
) -> MlflowRun:
    """Attach to a run, else go on with the one that an earlier attempt began, else create one."""
    if attached is not None:
        run = MlflowRun(client, attached, is_ours=False)
        _log_dataset(run, description.dataset)
    else:
        run = _ours(client, description, register, parent)
    run.set_tags(description.tags)
    run.log_params(description.params)
    return run


def end_children(parent: MlflowRun, status: str) -> None:
    """End the shards' runs that still say they run: their workers were killed and not missed."""
    for run in _search(
        parent.client, parent.experiment_id, f"tags.`{_PARENT_TAG}` = '{parent.run_id}'"
    ):
        if run.info.status == "RUNNING":
            parent.client.set_terminated(run.info.run_id, status)


def _ours(
    client: MlflowClient,
    description: RunDescription,
    register: Register,
    parent: MlflowRun | None,
) -> MlflowRun:
    known = register.read()
    if known is not None:
        run = _resume(client, known)
        if run is not None:
            return run
        # It is another server's, or was deleted. What an attempt of ours began here goes on.
        found = _of_same_job(client, description)
        run = _resume(client, found[0].info.run_id) if found else None
        return run or _create(client, description, parent)
    run = _create(client, description, parent)
    winner = register.create(run)
    if winner != run.run_id:
        client.delete_run(run.run_id)  # nothing is in it
        return _resume(client, winner) or run
    for orphan in _of_same_job(client, description):
        # Its worker was killed before it could write it down: nobody will ever end it.
        if orphan.info.status == "RUNNING" and orphan.info.run_id != run.run_id:
            _close_orphan(client, orphan.info.run_id)
    return run


def _close_orphan(client: MlflowClient, run_id: str) -> None:
    try:
        client.set_terminated(run_id, "KILLED")
    except MlflowException as error:
        if error.error_code not in _MISSING:  # else it was a rival's, who has just taken it back
            raise


def _resume(client: MlflowClient, run_id: str) -> MlflowRun | None:
    """Go on with a run; None if this server does not know it or has it among the deleted.

    Raises what else the server says: one that is away has forgotten nothing.
    """
    try:
        client.update_run(run_id, status="RUNNING")
        return MlflowRun(client, run_id, is_ours=True)
    except MlflowException as error:
        if error.error_code in _MISSING:
            return None
        raise


def _create(
    client: MlflowClient, description: RunDescription, parent: MlflowRun | None
) -> MlflowRun:
    if parent is not None:
        experiment_id = parent.experiment_id
    else:
        experiment_id = find_experiment(client, description.experiment)
    tags = {name: description.tags[name] for name in (IDENTITY_TAG, OUTPUT_TAG, PART_TAG)}
    if parent is not None:
        tags[_PARENT_TAG] = parent.run_id
    created = client.create_run(experiment_id, run_name=description.name, tags=tags)
    run = MlflowRun(client, created.info.run_id, is_ours=True)
    _log_dataset(run, description.dataset)
    return run


def _log_dataset(run: MlflowRun, dataset: RunDataset) -> None:
    name, digest = dataset.key
    entity = Dataset(
        name=name,
        digest=digest,
        source_type="s3" if dataset.uri.startswith("s3://") else "local",
        source=json.dumps({"uri": dataset.uri}),
        profile=json.dumps(dataset.profile),
    )
    tag = InputTag("mlflow.data.context", "inference")
    run.client.log_inputs(run.run_id, [DatasetInput(entity, [tag])])


def _of_same_job(client: MlflowClient, description: RunDescription) -> list[Run]:
    """Runs of the same identity, part and output, the oldest first."""
    experiment = client.get_experiment_by_name(description.experiment)
    if experiment is None:
        return []
    identity, part = description.tags[IDENTITY_TAG], description.tags[PART_TAG]
    same = f"tags.`{IDENTITY_TAG}` = '{identity}' AND tags.`{PART_TAG}` = '{part}'"
    runs = [
        run
        for run in _search(client, experiment.experiment_id, same)
        # Compared here: an output may have a quote in its name.
        if run.data.tags.get(OUTPUT_TAG) == description.tags[OUTPUT_TAG]
    ]
    return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


def _search(client: MlflowClient, experiment_id: str, condition: str) -> Iterator[Run]:
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id], condition, ViewType.ACTIVE_ONLY, max_results=1000, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return
