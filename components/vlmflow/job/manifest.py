"""The manifest of a job: planned once, read as often as needed, and never a changed one."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from hashlib import blake2b
from itertools import islice

from vlmflow.job.dialects import (
    BadLine,
    Item,
    ManifestReader,
    Position,
    Reading,
    locate_manifest,
    manifest_etag,
)
from vlmflow.job.dialects.reading import START
from vlmflow.job.errors import ManifestError
from vlmflow.job.plan import Plan, SetAside, Shard, cut
from vlmflow.job.record import Failure, Record
from vlmflow.job.spec import JobSpec
from vlmflow.job.store import StoreOpener

_MAX_MARKS = 4096


class Manifest:
    """What a spec says of the manifest, and the store that it is in."""

    def __init__(self, opener: StoreOpener, spec: JobSpec) -> None:
        self.uri = spec.manifest
        self._spec = spec
        self._store, self._key = locate_manifest(opener, spec.manifest, spec.dialect)

    def etag(self) -> str:
        """Raises ManifestError if there is no such manifest."""
        return manifest_etag(self._store, self._key, self._spec.dialect)

    def make_plan(self, look: Callable[[Record], None] | None = None) -> Plan:
        """Read the whole manifest; `look` is shown every record that will be asked.

        Raises ManifestError if it is empty, cannot be read, or holds an id twice where that is not
        allowed.
        """
        etag = self.etag()
        reader = self._reader(etag, self._spec.dialect)
        reading, ids, marks = reader.items(), _Ids(self._spec.duplicates), _Marks()
        num_records = 0
        for item in reading:
            limit = self._spec.limit
            if limit is not None and item.ordinal >= limit:
                continue  # read on: the digest is of the whole file
            num_records = item.ordinal + 1
            if ids.add(item) and look is not None and isinstance(item, Record):
                look(item)
            if reader.is_seekable:
                marks.add(reading.position)
        if num_records == 0:
            raise ManifestError(f"manifest {self.uri!r} has no records")
        shards = cut(num_records, self._spec.num_shards)
        digest = reading.sha256
        assert digest is not None  # all was read
        return Plan(
            etag=etag,
            sha256=digest,
            num_bytes=reading.num_bytes,
            dialect=reader.dialect,
            num_records=num_records,
            set_aside=ids.set_aside,
            new_ids=ids.new_ids,
            shards=tuple(replace(s, start=marks.last_before(s.first_ordinal)) for s in shards),
        )

    def records(self, plan: Plan, shard: Shard) -> Iterator[Record]:
        """Yield a shard's records to ask. Raises ManifestError if the manifest has changed."""
        for item in self.read(plan, shard.start):
            if item.ordinal >= shard.end:
                return
            if item.ordinal < shard.first_ordinal or item.ordinal in plan.set_aside:
                continue
            assert isinstance(item, Record)  # bad lines are set aside
            new_id = plan.new_ids.get(item.ordinal)
            yield item if new_id is None else replace(item, record_id=new_id)

    def pick(self, plan: Plan, ordinals: Collection[int]) -> dict[int, Record]:
        """Read a few records again, by ordinal; lines that are no records are left out.

        Raises ManifestError if the manifest has changed.
        """
        last, found = max(ordinals, default=-1), {}
        for item in self.read(plan) if ordinals else ():
            if item.ordinal in ordinals and isinstance(item, Record):
                found[item.ordinal] = item
            if item.ordinal >= last:
                break
        return found

    def first_records(self, count: int) -> list[Record]:
        """Those among the first lines; lines that are no records are left out."""
        items = islice(self._reader(self.etag(), self._spec.dialect).items(), count)
        return [item for item in items if isinstance(item, Record)]

    def read(self, plan: Plan, start: Position = START) -> Reading:
        """Read the plan's manifest as it is. Iterating raises ManifestError if it has changed."""
        return self._reader(plan.etag, plan.dialect).items(start)

    def _reader(self, etag: str, dialect: str) -> ManifestReader:
        return ManifestReader(
            self._store,
            self._key,
            etag=etag,
            dialect=dialect,
            prompt=self._spec.prompt,
            model_names=frozenset(self._spec.model_names) or None,
        )


class _Ids:
    """Sees every item of a manifest, and sets aside what shall not be asked."""

    def __init__(self, policy: str) -> None:
        self._policy = policy
        # Digests instead of ids: however long those are, a million lines cost under 200 MB.
        self._first_lines: dict[bytes, int] = {}
        self.set_aside: dict[int, SetAside] = {}
        self.new_ids: dict[int, str] = {}

    def add(self, item: Item) -> bool:
        """Tell whether it is to be asked.

        Raises ManifestError for an id that stood before, where the policy is "fail".
        """
        if isinstance(item, BadLine):
            self.set_aside[item.ordinal] = SetAside(
                item.ordinal, item.line, item.record_id, "failed", item.failure
            )
            return False
        first = self._first_lines.setdefault(_digest(item.record_id), item.line)
        if first == item.line:
            return True
        message = f"line {item.line}: id {item.record_id!r} stands in line {first} already"
        if self._policy == "fail":
            raise ManifestError(f"{message}; --duplicates first or suffix would allow it")
        if self._policy == "suffix":
            self.new_ids[item.ordinal] = self._unused(item)
            return True
        failure = Failure("manifest", "duplicate_id", f"{message}; the first is kept")
        self.set_aside[item.ordinal] = SetAside(
            item.ordinal, item.line, item.record_id, "skipped", failure
        )
        return False

    def _unused(self, record: Record) -> str:
        number = 2
        while True:
            name = f"{record.record_id}-{number}"
            if self._first_lines.setdefault(_digest(name), record.line) == record.line:
                return name
            number += 1


class _Marks:
    """Positions at which reading may begin: some of them, so that any manifest has few."""

    def __init__(self) -> None:
        self._marks = [START]
        self._every = 1

    def add(self, position: Position) -> None:
        if position.ordinal % self._every:
            return
        self._marks.append(position)
        if len(self._marks) > _MAX_MARKS:
            self._marks = self._marks[::2]
            self._every *= 2

    def last_before(self, ordinal: int) -> Position:
        """The last mark that is not behind the ordinal."""
        return next(mark for mark in reversed(self._marks) if mark.ordinal <= ordinal)


def _digest(record_id: str) -> bytes:
    return blake2b(record_id.encode(), digest_size=16).digest()
