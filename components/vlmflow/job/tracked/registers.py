"""Where a job keeps which MLflow runs are its own."""

import json
from typing import TYPE_CHECKING

from vlmflow.job import layout
from vlmflow.job.crash_points import reached
from vlmflow.job.job_file import read_json
from vlmflow.job.store import Store
from vlmflow.job.store.locate import without_query

if TYPE_CHECKING:
    from vlmflow.tracking.mlflow_run import MlflowRun

_ATTACHED = f"{layout.TRACKING_PARTS}attached.json"


class StoreRegister:
    """The run of the job or of a shard, as an object that is created once."""

    def __init__(self, store: Store, part: str) -> None:
        self._store = store
        self._key = layout.tracking_key(part)

    def read(self) -> str | None:
        """The run's id, or None."""
        content = read_json(self._store, self._key)
        run_id: str | None = content["run_id"] if content is not None else None
        return run_id

    def create(self, run: "MlflowRun") -> str:
        """Remember a run, unless one is remembered; return the id of the one that is."""
        reached("tracking-run-opened")
        content = layout.dump(
            {"run_id": run.run_id, "tracking_uri": without_query(run.tracking_uri)}
        )
        is_ours = self._store.create(self._key, content)
        reached("tracking-written")
        if is_ours:
            return run.run_id
        winner: str = json.loads(self._store.read(self._key))["run_id"]
        return winner


def remember_attached(store: Store, run: "MlflowRun") -> None:
    """Note a run that was handed to us, for a replay that is told nothing of it."""
    store.write(_ATTACHED, layout.dump({"run_id": run.run_id}))


def attached_before(store: Store) -> str | None:
    """The run that was handed to the job's latest attempt, if one was."""
    content = read_json(store, _ATTACHED)
    run_id: str | None = content["run_id"] if content is not None else None
    return run_id
