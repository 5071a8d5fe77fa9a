"""The plan: read once over the whole manifest, before anything is computed.

`plan.json` says what the manifest was (ETag, digest), how many records it has, which of them are
set aside (lines that are no records, and ids that stood before), and how it is cut into shards.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b, sha256
from typing import Any

from vlmflow.job.errors import IdentityError, ManifestError, SpecError
from vlmflow.job.layout import PLAN, dump
from vlmflow.job.manifest import BadLine, parse_line, parse_records, read_lines
from vlmflow.job.record import Failure, Record
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import ObjectMissingError, Store, StoreOpener
from vlmflow.job.store.base import ObjectChangedError, ObjectForbiddenError


@dataclass(frozen=True, slots=True)
class SetAside:
    """A record that is not asked. `kind` is "failed" for a bad line, "skipped" for a duplicate."""

    ordinal: int
    line: int
    record_id: str | None
    kind: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class Shard:
    """A run of the manifest's records, for one worker at a time."""

    number: int
    first_ordinal: int
    num_records: int

    @property
    def end(self) -> int:
        """The first ordinal after it."""
        return self.first_ordinal + self.num_records


@dataclass(frozen=True, slots=True)
class Plan:
    """What the manifest holds."""

    etag: str
    sha256: str
    num_bytes: int
    num_records: int  # every line but blank ones, up to the limit
    set_aside: dict[int, SetAside]  # by ordinal
    shards: tuple[Shard, ...]  # in order, none missing; some may be empty

    def set_aside_of(self, shard: Shard) -> list[SetAside]:
        return [s for n, s in self.set_aside.items() if shard.first_ordinal <= n < shard.end]

    def as_dict(self, manifest_uri: str) -> dict[str, Any]:
        return {
            "manifest": {
                "uri": manifest_uri,
                "etag": self.etag,
                "sha256": self.sha256,
                "num_bytes": self.num_bytes,
            },
            "num_records": self.num_records,
            "shards": [
                {"first_ordinal": shard.first_ordinal, "num_records": shard.num_records}
                for shard in self.shards
            ],
            "set_aside": [
                {
                    "ordinal": item.ordinal,
                    "line": item.line,
                    "id": item.record_id,
                    "kind": item.kind,
                    "error": item.failure.as_dict(),
                }
                for item in self.set_aside.values()
            ],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Plan":
        manifest = values["manifest"]
        set_aside = {}
        for item in values["set_aside"]:
            error = dict(item["error"])
            failure = Failure(error_class=error.pop("class"), **error)
            set_aside[item["ordinal"]] = SetAside(
                item["ordinal"], item["line"], item["id"], item["kind"], failure
            )
        return cls(
            etag=manifest["etag"],
            sha256=manifest["sha256"],
            num_bytes=manifest["num_bytes"],
            num_records=values["num_records"],
            set_aside=set_aside,
            shards=tuple(Shard(number, **shard) for number, shard in enumerate(values["shards"])),
        )


def cut(num_records: int, num_shards: int) -> tuple[Shard, ...]:
    """Cut records into shards of the same size, give or take one."""
    size, more = divmod(num_records, num_shards)
    firsts = [number * size + min(number, more) for number in range(num_shards + 1)]
    return tuple(Shard(n, firsts[n], firsts[n + 1] - firsts[n]) for n in range(num_shards))


class Manifest:
    """The manifest's place; reads it as often as needed and never a changed one."""

    def __init__(self, opener: StoreOpener, uri: str, limit: int | None) -> None:
        self.uri = uri
        self._store, self._key = opener.locate(uri)
        self._limit = limit

    def etag(self) -> str:
        """Raises ManifestError if there is no such manifest."""
        try:
            return self._store.stat(self._key).etag
        except (ObjectMissingError, ObjectForbiddenError) as error:
            raise ManifestError(f"manifest {self.uri!r}: {error}") from error

    def make_plan(self, num_shards: int = 1) -> Plan:
        """Read the whole manifest. Raises ManifestError if it is empty."""
        etag, digest, num_bytes = self.etag(), sha256(), 0

        def chunks() -> Iterator[bytes]:
            nonlocal num_bytes
            for chunk in self._chunks(etag):
                digest.update(chunk)
                num_bytes += len(chunk)
                yield chunk

        # Digests instead of ids: however long those are, a million lines cost under 200 MB.
        first_lines: dict[bytes, int] = {}
        set_aside: dict[int, SetAside] = {}
        num_records = 0
        for item in parse_records(read_lines(chunks())):
            if self._limit is not None and item.ordinal >= self._limit:
                continue  # read on: the digest is of the whole file
            num_records = item.ordinal + 1
            if isinstance(item, BadLine):
                set_aside[item.ordinal] = SetAside(
                    item.ordinal, item.line, item.record_id, "failed", item.failure
                )
                continue
            name = blake2b(item.record_id.encode(), digest_size=16).digest()
            first = first_lines.setdefault(name, item.line)
            if first != item.line:
                failure = Failure(
                    "manifest",
                    "duplicate_id",
                    f"line {item.line}: id {item.record_id!r} stands in line {first} already; "
                    "the first is kept",
                )
                set_aside[item.ordinal] = SetAside(
                    item.ordinal, item.line, item.record_id, "skipped", failure
                )
        if num_records == 0:
            raise ManifestError(f"manifest {self.uri!r} has no records")
        shards = cut(num_records, num_shards)
        return Plan(etag, digest.hexdigest(), num_bytes, num_records, set_aside, shards)

    def records(self, plan: Plan, shard: Shard) -> Iterator[Record]:
        """Yield a shard's records to ask. Raises ManifestError if the manifest has changed."""
        for item in parse_records(read_lines(self._chunks(plan.etag))):
            if item.ordinal >= shard.end:
                return
            if item.ordinal < shard.first_ordinal or item.ordinal in plan.set_aside:
                continue
            if isinstance(item, Record):
                yield item

    def pick(self, plan: Plan, ordinals: Collection[int]) -> dict[int, Record]:
        """Read a few records again, by ordinal; lines that are no records are left out.

        Only their lines are parsed. Raises ManifestError if the manifest has changed.
        """
        wanted, found = set(ordinals), {}
        lines = (item for item in read_lines(self._chunks(plan.etag)) if item[1].strip())
        for ordinal, (number, line) in enumerate(lines):
            if not wanted:
                break
            if ordinal in wanted:
                wanted.remove(ordinal)
                item = parse_line(ordinal, number, line)
                if isinstance(item, Record):
                    found[ordinal] = item
        return found

    def _chunks(self, etag: str) -> Iterator[bytes]:
        try:
            yield from self._store.stream(self._key, etag=etag)
        except (ObjectMissingError, ObjectForbiddenError) as error:
            raise ManifestError(f"manifest {self.uri!r}: {error}") from error
        except ObjectChangedError as error:
            raise ManifestError(
                f"manifest {self.uri!r} was changed while the job ran; a job's manifest must not "
                "change: write a new one under another name"
            ) from error


def find_plan(store: Store, manifest: Manifest, num_shards: int) -> Plan:
    """Take the output's plan if it is of this very manifest, else make one."""
    etag = manifest.etag()
    try:
        values = json.loads(store.read(PLAN))
    except ObjectMissingError:
        return manifest.make_plan(num_shards)
    there = Plan.from_dict(values)
    if values["manifest"]["uri"] == manifest.uri and there.etag == etag:
        return there
    # The same bytes copied or written anew are the same manifest: the identity is by digest.
    plan = manifest.make_plan(num_shards)
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
    manifest = Manifest(opener, spec.manifest, spec.limit)
    plan = save_plan(store, find_plan(store, manifest, spec.num_shards), spec.manifest)
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
