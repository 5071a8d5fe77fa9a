"""`job.json`: written once, it says which job an output belongs to."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from vlmflow import __version__
from vlmflow.job import layout
from vlmflow.job.errors import IdentityError
from vlmflow.job.identity import describe_difference, identity_digest, identity_parts
from vlmflow.job.model_folder import ModelFolder
from vlmflow.job.plan import Plan
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import ObjectMissingError, Store


@dataclass(frozen=True, slots=True)
class Identity:
    """What the job's answers depend on."""

    parts: dict[str, Any]
    dtype: str  # resolved: "auto" means on every machine what it meant on the first

    @property
    def digest(self) -> str:
        return identity_digest(self.parts)


class JobFile:
    """An output's job.json."""

    def __init__(self, store: Store, spec: JobSpec) -> None:
        self._store = store
        self._spec = spec

    def read(self) -> dict[str, Any] | None:
        return read_json(self._store, layout.JOB)

    def create(self, plan: Plan, model: ModelFolder, dtype: str) -> Identity:
        """Write it, or check what somebody else wrote. Raises IdentityError."""
        identity = self._identity(plan, model, dtype)
        content = {
            "identity": identity.digest,
            "identity_parts": identity.parts,
            "resolved": {
                "dtype": dtype,
                "model": model.origin,
                "registered_model": model.registered,
            },
            "spec": self._spec.public_values(),
            "version": __version__,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if self._store.create(layout.JOB, layout.dump(content)):
            return identity
        there = self.read()
        assert there is not None
        return self.check(there, plan, model)

    def check(self, there: dict[str, Any], plan: Plan, model: ModelFolder) -> Identity:
        """Return the identity; raises IdentityError if the output belongs to another job."""
        asked = self._spec.engine.dtype
        dtype = there["resolved"]["dtype"] if asked == "auto" else asked
        identity = self._identity(plan, model, dtype)
        if identity.parts != there["identity_parts"]:
            difference = describe_difference(identity.parts, there["identity_parts"])
            origin = there["resolved"].get("model")
            if origin not in (None, model.origin):
                difference += f"; the model was {origin} and is {model.origin}"
            raise IdentityError(
                f"{self._store.uri} belongs to another job ({difference}); "
                "give another --name or --output, or the old options to go on with it"
            )
        return identity

    def _identity(self, plan: Plan, model: ModelFolder, dtype: str) -> Identity:
        parts = identity_parts(
            self._spec,
            manifest_digest=plan.sha256,
            dialect=plan.dialect,
            model_digest=model.digest,
            dtype=dtype,
        )
        return Identity(parts, dtype)


def read_json(store: Store, key: str) -> dict[str, Any] | None:
    """Read one of our JSON objects; None if there is none."""
    try:
        content: dict[str, Any] = json.loads(store.read(key))
    except ObjectMissingError:
        return None
    return content
