"""The plan: read once over the whole manifest, before anything is computed.

`plan.json` says what the manifest was (ETag, digest), how many records it has, and which of them
are set aside: lines that are no records, and ids that stood before.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b, sha256
from typing import Any

from vlmflow.job.errors import IdentityError, ManifestError
from vlmflow.job.layout import PLAN, SHARD, dump
from vlmflow.job.manifest import BadLine, parse_records, read_lines
from vlmflow.job.record import Failure, Record
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
class Plan:
    """What the manifest holds."""

    etag: str
    sha256: str
    num_bytes: int
    num_records: int  # every line but blank ones, up to the limit
    set_aside: dict[int, SetAside]  # by ordinal

    @property
    def num_to_ask(self) -> int:
        return self.num_records - len(self.set_aside)

    @property
    def num_bad(self) -> int:
        """Lines that are no records; duplicates are not among them."""
        return sum(item.kind == "failed" for item in self.set_aside.values())

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
                {
                    "id": SHARD,
                    "start": 0,
                    "end": self.num_bytes,
                    "first_ordinal": 0,
                    "num_records": self.num_records,
                }
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
        )


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

    def make_plan(self) -> Plan:
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
        return Plan(etag, digest.hexdigest(), num_bytes, num_records, set_aside)

    def records(self, plan: Plan) -> Iterator[Record]:
        """Yield the records to ask. Raises ManifestError if the manifest is not the plan's."""
        for item in parse_records(read_lines(self._chunks(plan.etag))):
            if item.ordinal >= plan.num_records:
                return
            if isinstance(item, Record) and item.ordinal not in plan.set_aside:
                yield item

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


def find_plan(store: Store, manifest: Manifest) -> Plan:
    """Take the output's plan if it is of this very manifest, else make one."""
    etag = manifest.etag()
    try:
        values = json.loads(store.read(PLAN))
    except ObjectMissingError:
        return manifest.make_plan()
    if values["manifest"]["uri"] == manifest.uri and values["manifest"]["etag"] == etag:
        return Plan.from_dict(values)
    # The same bytes copied or written anew are the same manifest: the identity is by digest.
    return manifest.make_plan()


def save_plan(store: Store, plan: Plan, manifest_uri: str) -> None:
    """Write the plan if there is none. Raises IdentityError if there is another manifest's."""
    if not store.create(PLAN, dump(plan.as_dict(manifest_uri))):
        there = Plan.from_dict(json.loads(store.read(PLAN)))
        if there.sha256 != plan.sha256:
            raise IdentityError(f"{store.uri} holds the plan of another manifest")
