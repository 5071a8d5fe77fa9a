"""Which kills, on which store, and who goes on: every crash point in every order."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

# Where a job of few records is killed. A number says which time: the first claim is the shard's,
# the second that on writing the report; the first view is of results, the second of failures.
POINTS = (
    "plan-written", "job-file-created", "store-probed",
    "claim-created", "claim-created:2", "heartbeat-written", "heartbeat-written:2",
    "engine-ready", "attempt-written", "attempt-written:2", "progress-written",
    "progress-written:2", "part-written", "part-written:2", "part-written:4", "commit-created",
    "commit-created:2", "commit-created:4", "seal-due", "sealed", "claim-released",
    "finish-claimed", "view-written", "view-written:2", "report-written", "success-due",
    "success-written", "claim-released:2",
)  # fmt: skip
CHECKPOINT_POINTS = ("checkpoint-due", "checkpoint-created")  # need 65 commits
# In a job whose failures are asked again; the first generation is done.
RERUN_POINTS = (
    "generation-begun", "claim-created", "part-written", "commit-created", "sealed",
    "view-written:2", "report-written", "success-due",
)  # fmt: skip
TRACKING_POINTS = ("tracking-run-opened", "tracking-written")  # need an MLflow

# Who goes on: commands started beside one another.
ORDERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "same": ((),),
    "worker": (("--worker",),),
    "two": (("--worker",), ("--worker",)),
    "shards": (("--shard", "0/2"), ("--shard", "1/2")),
}
STORES = ("folder", "s3")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A job killed at these points, one after the other, and gone on with."""

    kind: str  # short, long or rerun
    store: str
    kills: tuple[str, ...]
    order: str

    def __str__(self) -> str:
        return "-".join((self.kind, self.store, *self.kills, self.order))


def _scenarios() -> Iterator[Scenario]:
    for store in STORES:
        for order in ORDERS:
            for point in POINTS:
                yield Scenario("short", store, (point,), order)
        for order in ("same", "two"):
            for point in CHECKPOINT_POINTS:
                yield Scenario("long", store, (point,), order)
        for order in ("same", "worker", "two"):
            for point in RERUN_POINTS:
                yield Scenario("rerun", store, (point,), order)
    # Killed at one point, gone on with and killed at a later one.
    draw = random.Random(3)
    for _ in range(40):
        first, second = sorted(draw.sample(range(len(_FIRST_TIMES)), 2))
        kills = (_FIRST_TIMES[first], _FIRST_TIMES[second])
        yield Scenario("short", draw.choice(STORES), kills, draw.choice(("same", "two")))


# In the order in which a job comes to them; of those that are reached in every attempt.
_FIRST_TIMES = (
    "plan-written", "job-file-created", "store-probed", "claim-created", "heartbeat-written",
    "engine-ready", "attempt-written", "part-written", "commit-created", "seal-due", "sealed",
    "finish-claimed", "view-written", "view-written:2", "report-written", "success-due",
)  # fmt: skip

SCENARIOS = tuple(_scenarios())
# One of twenty, spread over all kinds; more of them in a folder, which takes half the time.
SAMPLE = (
    *[s for s in SCENARIOS if s.store == "folder"][7::15],
    *[s for s in SCENARIOS if s.store == "s3"][9::32],
)
