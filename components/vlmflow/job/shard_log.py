"""A shard's log, found by generation and shard."""

from vlmflow.job.commit_log import CommitLog
from vlmflow.job.generations import Generation
from vlmflow.job.plan import Shard
from vlmflow.job.store import Store


def open_log(store: Store, generation: Generation, shard: Shard, *, epoch: int = -1) -> CommitLog:
    """A shard's log, read to its end. The epoch is the claim's; who only reads needs none."""
    log = CommitLog(
        store,
        generation.prefix(shard),
        num_records=shard.num_records,
        first_ordinal=shard.first_ordinal,
        epoch=epoch,
    )
    log.load()
    return log
