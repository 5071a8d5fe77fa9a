"""Generations: a job's records are asked once, and those that failed again when somebody says so.

Generation 0 asks what the plan asks. `--rerun-failed` begins the next one, which asks the last
one's failures; each has its own shards and logs, and what it asks is written down once. A record's
result is the newest success, else the newest failure.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from vlmflow.job.layout import dump, generation_key, shard_prefix
from vlmflow.job.ordinals import OrdinalSet, to_ranges
from vlmflow.job.plan import Plan, Shard
from vlmflow.job.store import ObjectMissingError, Store


@dataclass(frozen=True, slots=True)
class Generation:
    """One pass over records of the plan."""

    number: int
    asked: OrdinalSet  # ordinals

    def num_asked(self, shard: Shard) -> int:
        return self.asked.count(shard.first_ordinal, shard.end)

    def shards(self, plan: Plan) -> list[Shard]:
        """Those that it asks anything of."""
        return [shard for shard in plan.shards if self.num_asked(shard)]

    def prefix(self, shard: Shard) -> str:
        """Where the shard's claims, parts and commits stand."""
        return shard_prefix(self.number, shard.number)


def find_generations(store: Store, plan: Plan) -> list[Generation]:
    """All generations that were begun, in order; there is always the first."""
    asked = OrdinalSet.full(plan.num_records)
    for ordinal in plan.set_aside:
        asked.discard(ordinal)
    found = [Generation(0, asked)]
    while (generation := _read(store, plan, len(found))) is not None:
        found.append(generation)
    return found


def begin_generation(store: Store, plan: Plan, number: int, ordinals: Iterable[int]) -> Generation:
    """Begin a generation that asks these ordinals, in rising order; or take the one begun there."""
    store.create(generation_key(number), dump({"ordinals": to_ranges(ordinals)}))
    generation = _read(store, plan, number)
    assert generation is not None
    return generation


def _read(store: Store, plan: Plan, number: int) -> Generation | None:
    try:
        content = json.loads(store.read(generation_key(number)))
    except ObjectMissingError:
        return None
    asked = OrdinalSet(plan.num_records)
    asked.add_ranges(content["ordinals"])
    return Generation(number, asked)
