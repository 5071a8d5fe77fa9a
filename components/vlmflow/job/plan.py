"""The plan: read once over the whole manifest, before anything is computed.

`plan.json` says what the manifest was (ETag, digest), how many records it has, which of them are
set aside (lines that are no records, and ids that stood before), and how it is cut into shards.
"""

from dataclasses import asdict, dataclass
from typing import Any

from vlmflow.job.dialects.reading import START, Position
from vlmflow.job.record import Failure


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
    start: Position = START  # from where on the manifest is to be read for it

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
    dialect: str  # found, or as the spec said
    num_records: int  # every line but blank ones, up to the limit
    set_aside: dict[int, SetAside]  # by ordinal
    new_ids: dict[int, str]  # by ordinal, of records whose own ids stood before
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
                "dialect": self.dialect,
            },
            "num_records": self.num_records,
            "shards": [
                {
                    "first_ordinal": shard.first_ordinal,
                    "num_records": shard.num_records,
                    "start": asdict(shard.start),
                }
                for shard in self.shards
            ],
            "new_ids": {str(ordinal): name for ordinal, name in self.new_ids.items()},
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
            dialect=manifest["dialect"],
            num_records=values["num_records"],
            set_aside=set_aside,
            new_ids={int(ordinal): name for ordinal, name in values["new_ids"].items()},
            shards=tuple(
                Shard(
                    number,
                    shard["first_ordinal"],
                    shard["num_records"],
                    Position(**shard["start"]),
                )
                for number, shard in enumerate(values["shards"])
            ),
        )


def cut(num_records: int, num_shards: int) -> tuple[Shard, ...]:
    """Cut records into shards of the same size, give or take one."""
    size, more = divmod(num_records, num_shards)
    firsts = [number * size + min(number, more) for number in range(num_shards + 1)]
    return tuple(Shard(n, firsts[n], firsts[n + 1] - firsts[n]) for n in range(num_shards))
