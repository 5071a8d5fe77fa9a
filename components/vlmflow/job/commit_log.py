"""A shard's log of commits: the one place that says which records are done.

    <prefix>part-<epoch>-<n>.jsonl   lines of results and failures; immutable, unique names
    <prefix>commit-<seq>.json        names one part and the ordinals that it adds

A commit is made by creating the shard's next number. Of two workers exactly one gets it; the other
reads what won, drops the records that are done by now, and tries the next number. So no record is
ever committed twice, however long a worker slept; a part without a commit does not count.

Every 64th entry is a checkpoint: it repeats the whole state, so that a resume reads under 70
objects. The last entry is the seal: nothing follows it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from vlmflow.job.crash_points import reached
from vlmflow.job.errors import StoreError
from vlmflow.job.layout import dump
from vlmflow.job.ordinals import OrdinalSet, to_ranges
from vlmflow.job.record import Outcome
from vlmflow.job.store import ObjectMissingError, Store

CHECKPOINT_EVERY = 64


@dataclass(slots=True)
class CommitState:
    """What the log says, up to its last entry that was read."""

    committed: OrdinalSet
    next_seq: int = 0
    num_succeeded: int = 0
    num_failed: int = 0
    is_sealed: bool = False
    parts: dict[int, list[int]] = field(default_factory=dict)  # epoch -> its committed part numbers


class CommitLog:
    """One worker's hand on a shard's log. Used by one thread at a time."""

    def __init__(
        self, store: Store, prefix: str, *, num_records: int, epoch: int, first_ordinal: int = 0
    ) -> None:
        """Of the shard below `prefix`, which has `num_records` from `first_ordinal` on."""
        self._store = store
        self._prefix = prefix
        self._epoch = epoch
        self._next_part = 0
        self.state = CommitState(OrdinalSet(num_records, first=first_ordinal))

    def load(self) -> None:
        """Read the log from its last checkpoint on."""
        keys = list(self._store.list(f"{self._prefix}commit-"))
        last = len(keys) - 1
        start = last - last % CHECKPOINT_EVERY if last >= 0 else 0
        # Entry k * 64 is a checkpoint, but for the very first, which has nothing to repeat.
        for seq in range(start, last + 1):
            self._apply(self._read(seq))

    def commit(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Commit finished records; return those that were ours to commit.

        The others had been committed by somebody else in the meantime.
        """
        while True:
            new = [o for o in outcomes if o.ordinal not in self.state.committed]
            if not new:
                return []
            new.sort(key=lambda outcome: outcome.ordinal)
            part = self._write_part(new)
            while not any(outcome.ordinal in self.state.committed for outcome in new):
                if self._append(part, new):
                    return new
            # The part holds records that somebody else has committed by now: write another.

    def seal(self) -> None:
        """Close the log. Harmless if somebody else did."""
        while not self.state.is_sealed:
            self._append(None, [], seal=True)

    def part_keys(self) -> list[str]:
        """The committed parts, in the order of epochs and numbers."""
        return [
            self._part_key(epoch, number)
            for epoch in sorted(self.state.parts)
            for number in sorted(self.state.parts[epoch])
        ]

    def _write_part(self, outcomes: Sequence[Outcome]) -> int:
        number, self._next_part = self._next_part, self._next_part + 1
        lines = [
            json.dumps(outcome.line, ensure_ascii=False, separators=(",", ":"))
            for outcome in outcomes
        ]
        key = self._part_key(self._epoch, number)
        if not self._store.create(key, ("\n".join(lines) + "\n").encode()):
            raise StoreError(
                f"{self._store.uri}/{key} exists already, but this worker's epoch is its own; "
                "was the claim made on a store where creating is not atomic?"
            )
        reached("part-written")
        return number

    def _append(self, part: int | None, outcomes: Sequence[Outcome], *, seal: bool = False) -> bool:
        """Try to create the next entry; whoever won, our state holds it afterwards."""
        state, seq = self.state, self.state.next_seq
        num_failed = sum(not outcome.is_success for outcome in outcomes)
        entry: dict[str, Any] = {
            "seq": seq,
            "nonce": uuid4().hex,  # so that a lost answer is told from somebody else's entry
            "epoch": self._epoch,
            "part": part,
            "ordinals": to_ranges(outcome.ordinal for outcome in outcomes),
            "succeeded": len(outcomes) - num_failed,
            "failed": num_failed,
            "seal": seal,
        }
        is_checkpoint = seq % CHECKPOINT_EVERY == 0 and seq > 0
        if is_checkpoint:
            entry["checkpoint"] = {
                "committed": to_ranges(state.committed),
                "succeeded": state.num_succeeded,
                "failed": state.num_failed,
                "parts": {str(e): to_ranges(sorted(n)) for e, n in state.parts.items()},
            }
            reached("checkpoint-due")
        if seal:
            reached("seal-due")
        is_ours = self._store.create(self._key(seq), dump(entry))
        reached("sealed" if seal else "checkpoint-created" if is_checkpoint else "commit-created")
        self._apply(entry if is_ours else self._read(seq))
        return is_ours

    def _apply(self, entry: dict[str, Any]) -> None:
        state = self.state
        checkpoint = entry.get("checkpoint")
        if checkpoint is not None and state.next_seq == 0:
            state.committed.add_ranges(checkpoint["committed"])
            state.num_succeeded = checkpoint["succeeded"]
            state.num_failed = checkpoint["failed"]
            for epoch, ranges in checkpoint["parts"].items():
                numbers = state.parts.setdefault(int(epoch), [])
                for first, last in ranges:
                    numbers += range(first, last + 1)
        if entry["part"] is not None:
            state.parts.setdefault(entry["epoch"], []).append(entry["part"])
        state.committed.add_ranges(entry["ordinals"])
        state.num_succeeded += entry["succeeded"]
        state.num_failed += entry["failed"]
        state.is_sealed = state.is_sealed or entry["seal"]
        state.next_seq = entry["seq"] + 1

    def _read(self, seq: int) -> dict[str, Any]:
        return _read_entry(self._store, self._key(seq))

    def _key(self, seq: int) -> str:
        return f"{self._prefix}commit-{seq:08d}.json"

    def _part_key(self, epoch: int, number: int) -> str:
        return f"{self._prefix}part-{epoch:06d}-{number:08d}.jsonl"


def is_sealed(store: Store, prefix: str) -> bool:
    """Whether a shard's log is closed, without reading all of it."""
    keys = list(store.list(f"{prefix}commit-"))
    return bool(keys) and bool(_read_entry(store, keys[-1])["seal"])


def _read_entry(store: Store, key: str) -> dict[str, Any]:
    """Read an entry that is there: it was listed, or somebody was faster than we."""
    try:
        entry: dict[str, Any] = json.loads(store.read(key))
    except ObjectMissingError as error:
        raise StoreError(f"{error}, but the store said that it does; try again") from error
    return entry
