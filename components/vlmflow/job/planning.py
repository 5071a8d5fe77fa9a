"""The one plan of an output: found there, or made and written."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vlmflow.job.errors import IdentityError, SpecError
from vlmflow.job.layout import PLAN, dump
from vlmflow.job.manifest import Manifest
from vlmflow.job.plan import Plan
from vlmflow.job.record import Record
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import ObjectMissingError, Store, StoreOpener


def find_plan(
    store: Store, manifest: Manifest, look: Callable[[Record], None] | None = None
) -> Plan:
    """Take the output's plan if it is of this very manifest, else make one; see `make_plan`."""
    etag = manifest.etag()
    try:
        values = json.loads(store.read(PLAN))
    except ObjectMissingError:
        return manifest.make_plan(look)
    there = Plan.from_dict(values)
    if values["manifest"]["uri"] == manifest.uri and there.etag == etag:
        return there
    # The same bytes copied or written anew are the same manifest: the identity is by digest.
    plan = manifest.make_plan(look)
    return replace(plan, shards=there.shards) if plan.sha256 == there.sha256 else plan


def save_plan(store: Store, plan: Plan, manifest_uri: str) -> Plan:
    """Write the plan if there is none; return the one that holds.

    Raises IdentityError if there is another manifest's.
    """
    if store.create(PLAN, dump(plan.as_dict(manifest_uri))):
        return plan
    there = Plan.from_dict(json.loads(store.read(PLAN)))
    if there.sha256 != plan.sha256:
        raise IdentityError(f"{store.uri} holds the plan of another manifest")
    return replace(plan, shards=there.shards)  # others work by these cuts


def plan_job(spec: JobSpec) -> dict[str, Any]:
    """Write a job's plan, and return what an orchestrator needs to fan out over its shards.

    Raises SpecError if the job is planned in other shards already.
    """
    opener = StoreOpener(spec.endpoint_url)
    store = opener.open(f"{spec.output.rstrip('/')}/{spec.name}")
    plan = save_plan(store, find_plan(store, Manifest(opener, spec)), spec.manifest)
    count = len(plan.shards)
    if count != spec.num_shards:
        raise SpecError(f"{store.uri} is planned in {count} shards already, not {spec.num_shards}")
    return {
        "job": store.uri,
        "manifest": spec.manifest,
        "sha256": plan.sha256,
        "num_records": plan.num_records,
        "set_aside": len(plan.set_aside),
        "shards": [
            {
                "shard": f"{shard.number}/{count}",
                "first_ordinal": shard.first_ordinal,
                "num_records": shard.num_records,
            }
            for shard in plan.shards
        ],
    }


def shards_to_do(plan: dict[str, Any]) -> list[str]:
    """Of what `plan_job` returned: all but shards without records, and one at least."""
    shards = [item for item in plan["shards"] if item["num_records"]] or plan["shards"][:1]
    return [item["shard"] for item in shards]
